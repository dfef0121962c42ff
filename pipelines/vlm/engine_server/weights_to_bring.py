"""The files of a policy's weights on their way to a server: read where they are trained, or kept while they are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from grpo_mm.pipelines.vlm.engine_server.asking import Away
from grpo_mm.pipelines.vlm.forwards.network import Network
from grpo_mm.pipelines.vlm.sampling.weight_files import base_pieces
from grpo_mm.processes.own_folder import OwnFolder

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


class KeptWeights:
    """A copy on this machine's disk, for servers that lose them while others are in place here."""

    def __init__(self, network: Network, *, before: KeptWeights | None = None) -> None:
        """before: the copy of weights of the same network; the model under an adapter stays, and is not written again."""
        self.which = network.in_place.which
        self._folder = OwnFolder("kept")
        stays = before is not None and network.in_place.rank > 0
        for _ in written(files_of(network, self.which, base=not stays), self._folder.path):
            pass
        self._base = before._base if stays else self._folder

    def files(self, *, base: bool) -> Iterator[tuple[str, bytes]]:
        """(name, content); the adapter, and with base the model without it."""
        found = [path for path in self._base.files() if base and path.name not in ADAPTER]
        found += [path for path in self._folder.files() if path.name in ADAPTER]
        for path in found:
            yield path.name, path.read_bytes()


def files_of(network: Network, which: tuple[int, str], *, base: bool) -> Iterator[tuple[str, bytes]]:
    """The same of the weights in place.

    Raises:
        Away: they are others than `which` at the end: a call that was given up may have left somebody who brings them.
    """
    source = network.in_place
    if base:
        yield from base_pieces(source, dtype=network.precision)
    if source.rank:
        with TemporaryDirectory(prefix="grpo_mm_adapter_") as folder:
            source.write_adapter(Path(folder))
            for name in ADAPTER:
                yield name, (Path(folder) / name).read_bytes()
    if source.which != which:
        raise Away("the weights have changed while they were brought")


def written(files: Iterator[tuple[str, bytes]], folder: Path) -> Iterator[tuple[str, bytes]]:
    """Into a folder; what is sent instead says that it goes on."""
    for name, content in files:
        (folder / name).write_bytes(content)
        yield "written.json", b"{}"
