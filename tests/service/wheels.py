"""Packages of one module, and pip that has nothing else."""

import os
import zipfile


def wheel(folder, version):
    """A package of one module, as pip installs it."""
    name = f"tinyscore-{version}"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as file:
        file.writestr("tinyscore.py", f"VERSION = {version}\n")
        file.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: tinyscore\nVersion: {version}\n")
        file.writestr(
            f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{name}.dist-info/RECORD", "")


def without_an_index(patch, folder):
    """Environments are made below `folder`, of the wheels in `folder/wheels`."""
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_CONFIG_FILE", os.devnull)
    patch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    patch.setenv("PIP_FIND_LINKS", str(folder / "wheels"))
