"""Benchmarks: figures of a whole data set as the official scorers compute them, of videos in time and of pictures in space.

`window_metrics` and `qvhighlights_metrics` hold the pure scorers, in per cent; the other files read texts or published
prediction files and ask them. A score of single texts lives with its modality.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("benchmark", "temporal_grounding", "grpo_mm.rewards.benchmarks.temporal_grounding:TemporalGrounding", "arXiv:1705.02101"),
    Entry("benchmark", "best_of_modes", "grpo_mm.rewards.benchmarks.temporal_grounding:BestOfModes", "arXiv:2509.18056"),
    Entry("benchmark", "moment_retrieval", "grpo_mm.rewards.benchmarks.moments:MomentRetrieval", "arXiv:2107.09609"),
    Entry("benchmark", "highlights", "grpo_mm.rewards.benchmarks.moments:Highlights", "arXiv:2107.09609"),
    Entry("benchmark", "grounded_qa", "grpo_mm.rewards.benchmarks.grounded_qa:GroundedQa", "arXiv:2309.01327"),
    Entry("benchmark", "cv_bench", "grpo_mm.rewards.benchmarks.spatial:CvBench", "arXiv:2406.16860"),
    Entry("benchmark", "blink", "grpo_mm.rewards.benchmarks.spatial:Blink", "arXiv:2404.12390"),
    Entry("benchmark", "mmvp", "grpo_mm.rewards.benchmarks.spatial:Mmvp", "arXiv:2401.06209"),
    Entry("benchmark", "sat", "grpo_mm.rewards.benchmarks.spatial:Sat", "arXiv:2412.07755"),
    Entry("benchmark", "vsr", "grpo_mm.rewards.benchmarks.spatial:Vsr", "arXiv:2205.00363"),
    Entry("benchmark", "vsi_bench", "grpo_mm.rewards.benchmarks.vsi_bench:VsiBench", "arXiv:2412.14171"),
    Entry("benchmark", "tallyqa", "grpo_mm.rewards.benchmarks.tallyqa:TallyQa", "arXiv:1810.12440"),
    Entry("benchmark", "referring", "grpo_mm.rewards.benchmarks.referring:ReferringBoxes", "arXiv:1608.00272"),
    Entry("prediction_file", "qvhighlights", "grpo_mm.rewards.benchmarks.prediction_files:QVHighlightsFile", "arXiv:2107.09609"),
    Entry("prediction_file", "charades", "grpo_mm.rewards.benchmarks.prediction_files:CharadesFile", "arXiv:1705.02101"),
    Entry("prediction_file", "activitynet", "grpo_mm.rewards.benchmarks.prediction_files:ActivityNetFile", "arXiv:1705.00754"),
    Entry("prediction_file", "timelens_bench", "grpo_mm.rewards.benchmarks.prediction_files:TimeLensFile", "arXiv:2512.14698"),
    Entry("prediction_file", "tvgbench", "grpo_mm.rewards.benchmarks.prediction_files:TvgBenchFile", "arXiv:2503.13377"),
    Entry("prediction_file", "nextgqa", "grpo_mm.rewards.benchmarks.prediction_files:NextGqaFile", "arXiv:2309.01327"),
    Entry("prediction_file", "blink", "grpo_mm.rewards.benchmarks.spatial_prediction_files:BlinkFile", "arXiv:2404.12390"),
)  # fmt: skip
"""What a config can name of this room."""
