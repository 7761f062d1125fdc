"""Exported models hold standard operators only and run elsewhere with equal output."""

import subprocess
import sys
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from models import models
from presets import NAMES, make

import homeostat as hs


def to_onnx(model, x, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (x,), path, dynamo=True, verbose=False, external_data=False)


def run_onnx(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def operators(path):
    import onnx

    graph = onnx.load(path)
    return {(node.domain, node.op_type) for node in graph.graph.node} | {(f.domain, f.name) for f in graph.functions}


@pytest.mark.parametrize("name", ["ResNet", "GPT", "UNet"])
def test_onnx_of_an_adopted_model_is_standard_and_equal_in_onnxruntime(name, tmp_path):
    model, x = models()[name]
    hs.adopt(model)
    model(x)  # something to remember
    path = str(tmp_path / "model.onnx")
    to_onnx(model, x, path)
    assert {domain for domain, _ in operators(path)} <= {"", "ai.onnx"}
    torch.testing.assert_close(torch.from_numpy(run_onnx(path, x)), model(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_onnx_of_every_layer_is_standard_and_equal_in_onnxruntime(name, tmp_path):
    layer, x = make(name)
    layer(x)
    path = str(tmp_path / "layer.onnx")
    to_onnx(layer, x, path)
    assert {domain for domain, _ in operators(path)} <= {"", "ai.onnx"}
    np.testing.assert_allclose(run_onnx(path, x), layer(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_the_operators_are_those_a_runtime_knows_how_to_fuse(tmp_path):
    found = {}
    for name in ("LayerNorm", "GroupNorm", "BatchNorm2d", "InstanceNorm1d"):
        layer, x = make(name)
        path = str(tmp_path / "layer.onnx")
        to_onnx(layer, x, path)
        found[name] = {op for _, op in operators(path)}
    assert "LayerNormalization" in found["LayerNorm"]
    assert "BatchNormalization" in found["BatchNorm2d"]
    assert found["GroupNorm"] & {"GroupNormalization", "InstanceNormalization"}
    assert "InstanceNormalization" in found["InstanceNorm1d"]


def test_an_exported_program_loads_without_homeostat(tmp_path):
    model, x = models()["UNet"]
    hs.adopt(model).eval()
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "unet.pt2")
    torch.save(x, tmp_path / "x.pt")
    code = """
import sys, torch
sys.modules["homeostat"] = None
program = torch.export.load(sys.argv[1] + "/unet.pt2").module()
torch.save(program(torch.load(sys.argv[1] + "/x.pt", weights_only=True)), sys.argv[1] + "/y.pt")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    y = torch.load(tmp_path / "y.pt", weights_only=True)
    torch.testing.assert_close(y, model(x), rtol=1e-5, atol=1e-5)
