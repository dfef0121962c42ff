"""Scores of texts as such: answers, tags, lengths, repetition, overlap, consistency over paraphrases.

Nothing here looks at boxes or media; how an answer is read, `answers` knows.
"""

from grpo_mm.registry import Entry

_VIDEO = "configs/video/"

TAKES = "texts"
"""What the rewards of this room score."""
KINDS = (
    Entry("reward", "peer_similarity", "grpo_mm.rewards.text.peer_similarity:PeerSimilarity", "arXiv:2510.04392"),
    Entry("reward", "information_consistency", "grpo_mm.rewards.text.information_consistency:InformationConsistency", "arXiv:2512.12858"),
    Entry("reward", "answer_f1", "grpo_mm.rewards.text.text_overlap:AnswerF1"),
    Entry("reward", "tag_format", "grpo_mm.rewards.text.tag_format:TagFormat", "arXiv:2503.13377", _VIDEO + "time_r1_qwen25vl_7b.yaml"),
    Entry("reward", "typed_answer", "grpo_mm.rewards.text.typed_answer:TypedAnswer", "arXiv:2503.21776", _VIDEO + "video_r1_qwen25vl_7b.yaml"),
    Entry("reward", "response_length", "grpo_mm.rewards.text.response_length:ResponseLength", "arXiv:2503.21776"),
    Entry("reward", "repetition", "grpo_mm.rewards.text.repetition:Repetition", "arXiv:2505.15879"),
    Entry("reward", "edit_similarity", "grpo_mm.rewards.text.edit_similarity:EditSimilarity", "arXiv:2504.07954"),
    Entry("reward", "mean_relative_accuracy", "grpo_mm.rewards.text.mean_relative_accuracy:MeanRelativeAccuracy", "arXiv:2412.14171"),
)  # fmt: skip
"""What a config can name of this room."""
