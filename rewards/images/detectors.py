"""Object detectors: uint8 pictures [M, 3, H, W] to labelled boxes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.rewards.shared.networks import Network
from grpo_mm.rewards.shared.weights import check_model
from grpo_mm.weights.pretrained import load_model, load_other
from grpo_mm.weights.weight_files import check_head, refusing


@dataclass(frozen=True, eq=False)
class Detection:
    """Example: Detection("dog", 0.83, (12.0, 40.5, 118.0, 200.0))."""

    label: str
    score: float
    """0 to 1. What counts as certain differs between detectors."""
    box_xyxy_px: tuple[float, float, float, float]
    """Left, top, right, bottom; the origin is the top left corner of the picture."""
    mask_HW: Tensor | None = None
    """bool, of the picture's size; None from a detector that gives boxes only."""


class Detector(Protocol):
    """Also wanted by GenEvalReward, where a detector has them: `labels` (what it knows), `to(device)`, `check()`."""

    def __call__(self, images: Tensor) -> list[list[Detection]]:
        """uint8 [M, 3, H, W] on any device -> the detections of each picture, in any order."""
        ...


@dataclass
class OnnxDetector:
    """A FastestDet-style ONNX detector on the CPU: small, fast, and good enough to try things out.

    The graph takes one BGR picture [1, 3, h, w] in 0..1 and gives one map [1, 5 + K, rows, columns]; its size is read
    from the file. Pictures are stretched to it.

    Source: https://github.com/dog-qiuqiu/FastestDet (utils/tool.py, example/onnx-runtime).
    """

    path: str
    names_path: str
    """A text file with the K class names, one a line, in the order of the graph's classes."""
    min_score: float = 0.25
    max_overlap: float = 0.45
    """Of two boxes of a class that overlap more (intersection over union), the better one stays."""
    threads: int = field(default=1, metadata=FREE)

    def __post_init__(self) -> None:
        self._session: Any = None

    def check(self) -> None:
        """Raises ConfigError if a file is missing or plainly no such file, or onnxruntime is missing."""
        for key in ("path", "names_path"):
            if not os.path.isfile(getattr(self, key)):
                raise ConfigError(f"onnx detector: {key} = {getattr(self, key)!r}: no such file.")
            check_head(getattr(self, key))
        if importlib.util.find_spec("onnxruntime") is None:
            raise ConfigError("onnx detector: onnxruntime is not installed; pip install 'grpo_mm[detector]'.")

    @property
    def labels(self) -> list[str]:
        with refusing(self.names_path), open(self.names_path, encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()]

    def to(self, device: torch.device | str) -> OnnxDetector:
        """Loads the graph, which stays on the CPU.

        Raises:
            ConfigError: it cannot be loaded, or is no such graph.
        """
        if self._session is None:
            self._load()
        return self

    def __call__(self, images: Tensor) -> list[list[Detection]]:
        self.to("cpu")
        height, width = self._session.get_inputs()[0].shape[2:]
        name = self._session.get_inputs()[0].name
        small = F.interpolate(images.float(), (height, width), mode="bilinear", antialias=True, align_corners=False)
        batch = (small.flip(1) / 255).cpu().numpy()  # flip: trained on OpenCV's BGR; a cat in RGB is lost
        return [self._detections(self._session.run(None, {name: x[None]})[0][0], images.shape[2:]) for x in batch]

    def _load(self) -> None:
        self.check()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4  # what is wrong is raised as well
        self._names = self.labels
        with refusing(self.path):
            session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        takes, gives = ([list(end.shape) for end in ends] for ends in (session.get_inputs(), session.get_outputs()))
        if len(takes) != 1 or len(takes[0]) != 4 or not all(isinstance(side, int) for side in takes[0][1:]):
            raise ConfigError(f"{self.path} takes {takes}; wanted one picture [1, 3, height, width] of a fixed size.")
        if len(gives) != 1 or len(gives[0]) != 4 or gives[0][1] != 5 + len(self._names):
            raise ConfigError(
                f"{self.path} gives maps {gives}; {len(self._names)} names in {self.names_path} want one map with "
                f"{5 + len(self._names)} channels."
            )
        with refusing(self.path):  # weights that are NaN show in what it makes of a grey picture
            (grey,) = session.run(None, {session.get_inputs()[0].name: np.full((1, *takes[0][1:]), 0.5, np.float32)})
        if not np.isfinite(grey).all():
            raise ConfigError(f"{self.path} gives NaN or infinities for a grey picture: its weights are damaged.")
        self._session = session

    def _detections(self, map_CHW: np.ndarray, size: Sequence[int]) -> list[Detection]:
        box, score, label = decode_fastestdet(torch.from_numpy(map_CHW), size=size)
        keep = keep_best(box, score, label, min_score=self.min_score, max_overlap=self.max_overlap)
        return [Detection(self._names[label[i]], float(score[i]), tuple(box[i].tolist())) for i in keep.tolist()]


def decode_fastestdet(map_CHW: Tensor, *, size: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """One candidate per cell: boxes [cells, 4] xyxy in pixels of a picture of `size` (height, width), scores, classes.

    Channels: objectness in 0..1, centre offset (tanh, in cells), width and height (sigmoid, in pictures), class
    probabilities. score = objectness × best class probability.
    """
    _, rows, columns = map_CHW.shape
    height, width = size
    probability, label = map_CHW[5:].max(0)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    center_x, center_y = (x + map_CHW[1].tanh()) / columns * width, (y + map_CHW[2].tanh()) / rows * height
    half_w, half_h = map_CHW[3].sigmoid() * width / 2, map_CHW[4].sigmoid() * height / 2
    box = torch.stack([center_x - half_w, center_y - half_h, center_x + half_w, center_y + half_h], dim=-1)
    limit = box.new_tensor([width, height, width, height])
    return box.clamp_min(0).minimum(limit).flatten(0, 1), (map_CHW[0] * probability).flatten(), label.flatten()


def keep_best(box: Tensor, score: Tensor, label: Tensor, *, min_score: float, max_overlap: float) -> Tensor:
    """Indices of the candidates left by the threshold and by non-maximum suppression per class, best first."""
    from torchvision.ops import batched_nms

    certain = torch.nonzero(score > min_score)[:, 0]
    return certain[batched_nms(box[certain], score[certain], label[certain], max_overlap)]


@dataclass
class TransformersDetector(Network):
    """A transformers object detector (DETR, RT-DETR, YOLOS, …) or Mask2Former by name or path.

    "facebook/mask2former-swin-small-coco-instance" is the detector of GenEval and Flow-GRPO; it also gives masks.
    """

    name: str
    """A name on the hub or a local folder."""
    min_score: float = 0.05
    """Below what any rule that reads the detections asks for."""
    batch_size: int = field(default=8, metadata=FREE)
    revision: str | None = None

    def check(self) -> None:
        """Raises ConfigError if the name is a path where there is no folder."""
        if self.name.startswith((".", os.sep)) and not os.path.isdir(self.name):
            raise ConfigError(f"transformers detector: name = {self.name!r}: no such folder.")
        if os.path.isdir(self.name):
            check_model("transformers detector: name", self.name)

    @property
    def labels(self) -> list[str]:
        self._load()
        return list(self._model.config.id2label.values())

    def __call__(self, images: Tensor) -> list[list[Detection]]:
        self._load()
        return [found for chunk in images.split(self.batch_size) for found in self._detect(chunk)]

    def _build(self) -> torch.nn.Module:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection
        from transformers import AutoModelForUniversalSegmentation as AutoModelForMasks

        config = load_other(AutoConfig, self.name, revision=self.revision)
        self._gives_masks = config.model_type == "mask2former"
        auto = AutoModelForMasks if self._gives_masks else AutoModelForObjectDetection
        self._processor = load_other(AutoImageProcessor, self.name, revision=self.revision)
        return load_model(auto, self.name, revision=self.revision)

    @torch.no_grad()
    def _detect(self, images: Tensor) -> list[list[Detection]]:
        inputs = self._processor(images=list(images.cpu()), return_tensors="pt").to(self._device)
        outputs = self._model(**inputs)
        sizes = [tuple(images.shape[2:])] * len(images)
        if self._gives_masks:
            # transformers' own post-processing mixes in CPU tensors
            logits = SimpleNamespace(
                class_queries_logits=outputs.class_queries_logits.float().cpu(),
                masks_queries_logits=outputs.masks_queries_logits.float().cpu(),
            )
            found = self._processor.post_process_instance_segmentation(
                logits, threshold=self.min_score, target_sizes=sizes, return_binary_maps=True
            )
            return [self._from_masks(one) for one in found]
        found = self._processor.post_process_object_detection(outputs, threshold=self.min_score, target_sizes=sizes)
        names = self._model.config.id2label
        return [
            [
                Detection(names[label.item()], score.item(), tuple(box.tolist()))
                for label, score, box in zip(one["labels"], one["scores"], one["boxes"])
            ]
            for one in found
        ]

    def _from_masks(self, found: dict[str, Any]) -> list[Detection]:
        names, detections = self._model.config.id2label, []
        for segment, mask in zip(found["segments_info"], found["segmentation"] if found["segments_info"] else ()):
            mask_HW = mask.bool()
            y, x = mask_HW.any(1).nonzero()[:, 0], mask_HW.any(0).nonzero()[:, 0]
            box = (float(x[0]), float(y[0]), float(x[-1] + 1), float(y[-1] + 1))
            detections.append(Detection(names[segment["label_id"]], segment["score"], box, mask_HW))
        return detections
