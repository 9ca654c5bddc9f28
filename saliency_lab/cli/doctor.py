"""`saliency-lab doctor`."""

from __future__ import annotations

from importlib.util import find_spec

import typer

from saliency_lab._common.text import number_of
from saliency_lab.cli.options import DataRoot

OPTIONAL = {
    "ipywidgets": ("sl.explore and progress bars in Jupyter", "pip install '.[notebook]'"),
    "jupyterlab": ("the notebooks", "pip install '.[notebook]'"),
    "timm": ("models of timm, and imagenet/efficientnet_lite0", "pip install '.[pretrained]'"),
    "transformers": ("models of Hugging Face", "pip install '.[hf]'"),
    "distributed": ("study --executor dask", "pip install '.[distributed]'"),
    "tensorboard": ("logs of a run in TensorBoard", "pip install tensorboard"),
}


def add_to(app: typer.Typer) -> None:
    """Register the subcommand."""
    app.command()(doctor)


def doctor(data_root: DataRoot = None) -> None:
    """Show versions, devices and data found; say what is missing and how to get it."""
    import pandas as pd
    import torch

    from saliency_lab._common.provenance import versions
    from saliency_lab.cli.output import print_table
    from saliency_lab.data import data_root as find_root
    from saliency_lab.data import list_datasets

    print_table(pd.DataFrame(versions().items(), columns=["package", "version"]), "versions")
    threads = torch.get_num_threads()
    devices = [("cpu", number_of(threads, "thread"), "")]
    for index in range(torch.cuda.device_count()):
        devices.append((f"cuda:{index}", torch.cuda.get_device_name(index), ""))
    if not torch.cuda.is_available():
        devices.append(("cuda", "absent", "needs an NVIDIA GPU and its driver; everything runs on the CPU"))
    mps = torch.backends.mps.is_available()
    devices.append(("mps", "found" if mps else "absent", "" if mps else "needs an Apple GPU"))
    print_table(pd.DataFrame(devices, columns=["device", "state", "note"]), "devices")
    data = list_datasets(data_root)[["found"]].reset_index(names="data set")
    absent = (data["found"] == "") & (data["data set"] != "image_folder")
    data["how to get it"] = ("saliency-lab download " + data["data set"]).where(absent, "")
    data.loc[data["data set"] == "image_folder", "how to get it"] = "put train/CLASS/* and test/CLASS/* there"
    print_table(data, f"data, looked for under '{find_root(data_root)}'")
    extras = [
        (name, use, "found" if find_spec(name) else "absent", "" if find_spec(name) else how)
        for name, (use, how) in OPTIONAL.items()
    ]
    table = pd.DataFrame(extras, columns=["optional package", "for", "state", "how to get it"])
    print_table(table, "extras; . is the folder of the checkout")
