"""The bytes are those of the library, and the hash is that of the file."""

import hashlib

import pytest
import safetensors.torch
import torch

from grpo_mm.weights import hashed_files

DTYPES = list(hashed_files.NAMES)


@pytest.mark.parametrize(
    "metadata", [None, {"cut": '{"größe": [0, [3]]}'}]
)  # of several keys the library keeps no order
@pytest.mark.parametrize("piece", [2**24, 7])
def test_bytes_and_hash(tmp_path, monkeypatch, metadata, piece):
    monkeypatch.setattr(hashed_files, "PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{name}.weight": torch.randint(0, 2, shape, generator=generator).to(dtype)
               for dtype in DTYPES for name, shape in ((f"b{dtype}", (3, 5)), (f"Z{dtype}", ()), (f"ä{dtype}", (0, 4)))}  # fmt: skip
    for some in (tensors, {}, {"one": torch.ones(1)}):
        digest = hashed_files.save_file(some, tmp_path / "ours", metadata)
        safetensors.torch.save_file(some, tmp_path / "theirs", metadata)
        ours = (tmp_path / "ours").read_bytes()
        assert ours == (tmp_path / "theirs").read_bytes() and digest == hashlib.sha256(ours).hexdigest()


def test_a_dtype_without_a_name_is_refused_before_a_file_is_there(tmp_path):
    with pytest.raises(TypeError, match="phase is torch.complex128"):
        hashed_files.save_file({"phase": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "x")
    assert not (tmp_path / "x").exists()
