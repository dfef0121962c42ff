"""Every reader refuses a limit of no rows, which some took for all."""

import pytest

from grpo_mm.datasets.chat.conversations import Conversations
from grpo_mm.datasets.chat.messages import Messages
from grpo_mm.datasets.images.geneval import GenEvalPrompts
from grpo_mm.datasets.shared.files import PromptFile
from grpo_mm.datasets.spatial.vsr import Vsr
from grpo_mm.datasets.video.qvhighlights import QVHighlights
from grpo_mm.datasets.video.video_r1 import VideoR1Questions
from grpo_mm.errors import ConfigError


@pytest.mark.parametrize(
    "reader", [Conversations, GenEvalPrompts, Messages, PromptFile, QVHighlights, VideoR1Questions, Vsr]
)
@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(reader, limit, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    with pytest.raises(ConfigError, match=f"limit = {limit}, wanted at least 1"):
        reader(str(file), limit=limit).check()
