"""Targets of prompts as JSON that keeps what JSON does not know: tuples, keys that are no texts, arrays, pictures, NaN."""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import torch

from grpo_mm.outside import is_text, reason, shown
from grpo_mm.rewards.service.png import Pixels, Refused, image_of, picture_of, png_of, png_of_image

TAG = "$"
"""The key of an object that stands for something else."""
DTYPES = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)
DEEPEST = 60
"""Levels of a target, which may take three each as JSON."""
MOST_DIGITS = 4000


def packed(value: Any, where: str, depth: int = 0) -> Any:
    """A value as plain JSON; raises Refused, which names the place, for what cannot be sent."""
    kind = type(value)
    if depth > DEEPEST:
        raise Refused(f"{where} is nested more than {DEEPEST} levels, which cannot be sent.")
    if value is None or kind is bool or (kind is int and value.bit_length() < 3 * MOST_DIGITS):
        return value
    if kind is str and is_text(value):
        return value
    if kind is float:
        return value if math.isfinite(value) else {TAG: "float", "v": repr(value)}
    if kind in (list, tuple):
        parts = [packed(part, f"{where}[{i}]", depth + 1) for i, part in enumerate(value)]
        return parts if kind is list else {TAG: "tuple", "v": parts}
    if kind is dict:
        return _packed_dict(value, where, depth)
    if kind.__module__.startswith("PIL."):
        return {TAG: "image", "v": png_of_image(value, where)}
    if kind.__module__.startswith("grpo_mm.") and hasattr(value, "open"):  # a picture that lies in a file or a table
        return {TAG: "image", "v": png_of_image(_opened(value, where), where)}
    if isinstance(value, torch.Tensor) and value.dtype == torch.uint8 and value.ndim == 3 and value.shape[0] in (1, 3):
        return {TAG: "picture", "v": png_of(value, where)}
    if isinstance(value, torch.Tensor) and value.dtype is not torch.bfloat16:
        return _packed_array(value.detach().cpu().numpy(), where) | {TAG: "tensor"}
    if kind.__module__ == "numpy" and hasattr(value, "tobytes"):
        return _packed_array(value, where)
    raise Refused(f"{where} is {shown(value, 80)} ({kind.__module__}.{kind.__qualname__}), which cannot be sent.")


def _opened(value: Any, where: str) -> Any:
    try:
        return value.open()
    except (ValueError, OSError) as error:
        raise Refused(f"{where} cannot be opened, so it cannot be sent: {reason(error)}.") from error


def _packed_dict(value: dict[Any, Any], where: str, depth: int) -> dict[str, Any]:
    pairs = [(key, packed(part, f"{where}[{shown(key, 40)}]", depth + 1)) for key, part in value.items()]
    if all(type(key) is str and is_text(key) for key in value) and TAG not in value:
        return dict(pairs)
    return {TAG: "dict", "v": [[packed(key, f"a key of {where}", depth + 1), part] for key, part in pairs]}


def _packed_array(array: Any, where: str) -> dict[str, Any]:
    import numpy as np

    array = np.asarray(array)
    if array.dtype.name not in DTYPES:
        raise Refused(f"{where} is an array of {array.dtype}, which cannot be sent.")
    data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return {
        TAG: "array", "dtype": array.dtype.name, "shape": list(array.shape), "v": base64.b64encode(data).decode("ascii")
    }  # fmt: skip


def unpacked(value: Any, pixels: Pixels, where: str) -> Any:
    """The inverse of `packed`; raises Refused for what it cannot have written."""
    if isinstance(value, list):
        return [unpacked(part, pixels, f"{where}[{i}]") for i, part in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: unpacked(part, pixels, f"{where}[{shown(key, 40)}]") for key, part in value.items()}
    tag, inner = value[TAG], value.get("v")
    if tag == "float" and inner in ("nan", "inf", "-inf"):
        return float(inner)
    if tag == "tuple" and isinstance(inner, list):
        return tuple(unpacked(inner, pixels, where))
    if tag == "image":
        return image_of(inner, pixels, where)
    if tag == "picture":
        return picture_of(inner, pixels, where)
    if tag in ("array", "tensor"):
        array = _unpacked_array(value, where)
        return torch.from_numpy(array) if tag == "tensor" else array[()]
    if tag == "dict" and isinstance(inner, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in inner):
        try:
            return dict((unpacked(k, pixels, where), unpacked(v, pixels, where)) for k, v in inner)
        except TypeError as error:
            raise Refused(f"{where} has a key that can be none ({reason(error, 80)}).") from error
    raise Refused(f"{where} is {shown(value, 80)}, which stands for nothing that is known here.")


def _unpacked_array(value: dict[str, Any], where: str) -> Any:
    import numpy as np

    shape, dtype, text = value.get("shape"), value.get("dtype"), value.get("v")
    if (
        not (isinstance(dtype, str) and dtype in DTYPES and isinstance(text, str) and isinstance(shape, list))
        or len(shape) > 16
        or any(type(size) is not int or not 0 <= size < 2**31 for size in shape)
    ):
        raise Refused(f"{where} is no array of numbers that can be read.")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(f"{where} is no base64 of an array.") from error
    if len(data) != math.prod(shape) * np.dtype(dtype).itemsize:
        raise Refused(f"{where}: an array of shape {shape} and {dtype} has not {len(data)} bytes.")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(shape)
