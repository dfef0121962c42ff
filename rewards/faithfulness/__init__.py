"""Does the reasoning bear out the answer, and the picture the reasoning? By rules, or by a judge.

Plain right or wrong is scored in `text`.
"""

from grpo_mm.registry import Entry

TAKES = "texts"
"""What the rewards of this room score."""
KINDS = (
    Entry("reward", "consistency", "grpo_mm.rewards.faithfulness.consistency:Consistency", "arXiv:2604.08476"),
    Entry("reward", "semantic_grounding", "grpo_mm.rewards.faithfulness.semantic_grounding:SemanticGrounding", "arXiv:2604.08476"),
    Entry("reward", "answer_judge", "grpo_mm.rewards.faithfulness.answer_judge:AnswerJudge", "arXiv:2505.15879"),
)  # fmt: skip
"""What a config can name of this room."""
