"""The lines that a refused pickle's message shows, run where PyTorch is."""

import numpy as np
import pytest

from jaxunlearn.nn.files import folder

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")


@pytest.mark.parametrize(
    ("files", "made"),
    [
        (["pytorch_model.bin"], "model.safetensors"),
        (["pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin"], "model.safetensors"),
        (["diffusion_pytorch_model.bin"], "diffusion_pytorch_model.safetensors"),
    ],
)
def test_the_lines_convert(tmp_path, files, made):
    table = torch.arange(6.0).reshape(2, 3)
    for i, file in enumerate(files):
        tied = {f"{i}.embed": table + i, f"{i}.head": table + i, f"{i}.turned": table.T}
        torch.save(tied | {f"{i}.same": tied[f"{i}.embed"]}, tmp_path / file)
    torch.save({"lr": 1.0}, tmp_path / "optimizer.pt")
    with pytest.raises(ValueError, match="only pickled weights") as refused:
        folder.tensors(tmp_path)
    _, *lines = str(refused.value).splitlines()
    assert len(lines) == 2
    exec("import torch, safetensors.torch\n" + "\n".join(line.strip() for line in lines))
    assert (tmp_path / made).exists()
    stored = folder.tensors(tmp_path)
    assert len(stored) == 4 * len(files)
    for i in range(len(files)):
        for name in ("embed", "head", "same"):
            np.testing.assert_array_equal(stored[f"{i}.{name}"][...], table.numpy() + i)
        np.testing.assert_array_equal(stored[f"{i}.turned"][...], table.numpy().T)


@pytest.mark.parametrize("inner", [None, "state_dict", "net", "model"])
def test_the_lines_for_a_single_file_convert(tmp_path, inner):
    turned = torch.arange(6.0).reshape(2, 3).T
    weights = {"fc.weight": turned, "bn.num_batches_tracked": torch.tensor(7)}
    file = tmp_path / "Standard.pt"
    torch.save(weights if inner is None else {inner: weights, "epoch": 3}, file)
    with pytest.raises(ValueError, match="Standard.pt is pickled") as refused:
        folder.tensors_at(file)
    _, *lines = str(refused.value).splitlines()
    code = "\n".join(line.removeprefix("    ") for line in lines)
    exec("import torch, safetensors.torch\n" + code)
    stored = folder.tensors_at(tmp_path / "Standard.safetensors", ignore=".*tracked")
    np.testing.assert_array_equal(stored["fc.weight"][...], turned.numpy())
