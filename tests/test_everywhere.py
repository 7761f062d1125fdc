"""Every preset inside everything torch can do with a layer: the answer and the memory afterwards are the same."""

import copy
import io
import pickle

import pytest
import torch
import torch._dynamo.testing
from presets import HOLDING, NAMES, REMEMBERING, SOURCES, assert_same, everything, make
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import homeostat as hs

every_preset = pytest.mark.parametrize("name", NAMES)
remembering = pytest.mark.parametrize("name", REMEMBERING)
READING = ("Renorm", "Shrunk", "Domain", "Running auto")
WRITING = (*REMEMBERING, *READING, "Renorm on a schedule", "Mixed", "Blended", "Ghost")
writing = pytest.mark.parametrize("name", WRITING)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    torch._dynamo.reset()


@every_preset
def test_compiled_whole_and_static_it_gives_the_same(name):
    layer, x = make(name)
    want = everything(copy.deepcopy(layer), x)
    assert_same(everything(layer, x, torch.compile(layer, fullgraph=True, dynamic=False)), want)


@every_preset
def test_compiled_whole_with_dynamic_shapes_it_serves_other_shapes_without_a_new_graph(name):
    layer, x = make(name)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    graphs = []
    for n in (7, 9, 11):  # unlike every other axis: equal lengths would share a symbol
        z = torch.cat([x] * 4)[:n]
        twin = copy.deepcopy(layer)
        layer.zero_grad()
        assert_same(everything(layer, z, compiled), everything(twin, z))
        graphs.append(counter.frame_count)
    # what is left over makes another graph than even parts do; a first batch has no parts to compare
    assert len(set(graphs)) == (2 if name == "Ghost with a rest" else 1)


@every_preset
def test_compiled_with_dynamic_shapes_by_inductor_it_gives_the_same(name):
    layer, x = make(name)
    want = everything(copy.deepcopy(layer), x)
    assert_same(everything(layer, x, torch.compile(layer, fullgraph=True, dynamic=True)), want)


@every_preset
@pytest.mark.parametrize("training", [False, True])
def test_torch_export_holds_standard_operators_only_and_gives_the_same(name, training):
    layer, x = make(name)
    layer.train(training)
    program = torch.export.export(copy.deepcopy(layer), (x,))
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(op.startswith("aten.") or op.startswith("<built-in function") for op in used), used
    exported = program.module()
    torch.testing.assert_close(exported(x), layer(x), rtol=1e-5, atol=1e-5)
    kept = dict(exported.named_buffers())
    for key, buffer in layer.named_buffers():
        if key in kept:
            torch.testing.assert_close(kept[key], buffer)


@every_preset
@pytest.mark.parametrize("inside", [torch.float32, torch.bfloat16])
def test_under_autocast_the_dtype_is_torchs_and_the_values_are_those_of_float32(name, inside):
    layer, x = make(name)
    with torch.autocast("cpu", torch.bfloat16):
        y = copy.deepcopy(layer)(x.to(inside))
        like = torch.nn.LayerNorm(6)(torch.zeros(2, 6, dtype=inside)).dtype
    assert y.dtype == like
    torch.testing.assert_close(y.float(), layer(x.to(inside).float()), rtol=1e-2, atol=2e-2)


@every_preset
def test_vmap_equals_a_loop(name):
    layer, x = make(name)
    lanes = torch.stack([x, x + 1, x * 2])

    def one(lane):
        with hs.trial(layer):  # every lane sees the memory that was there before
            return layer(lane)

    torch.testing.assert_close(vmap(copy.deepcopy(layer))(lanes), torch.stack([one(lane) for lane in lanes]))


@remembering
def test_under_vmap_the_lanes_moments_merge_into_one_update(name):
    layer, x = make(name)
    lanes = torch.stack([x, x + 1])
    vmap(layer)(lanes)
    assert layer.num_batches_tracked == 1
    axes = [a for a in range(lanes.dim()) if a != 2]
    k = 1.0 if layer.source.momentum is None else layer.source.momentum
    torch.testing.assert_close(layer.running_mean, k * lanes.double().mean(axes).float(), rtol=1e-5, atol=1e-6)


def test_under_vmap_over_stacked_models_every_model_keeps_its_own_memory():
    models = [make("BatchNorm2d")[0] for _ in range(3)]
    x = make("BatchNorm2d")[1]
    parameters, buffers = torch.func.stack_module_state(models)
    skeleton = copy.deepcopy(models[0])
    xs = torch.stack([x, x + 1, x + 2])
    y = vmap(lambda p, b, z: functional_call(skeleton, (p, b), (z,)))(parameters, buffers, xs)
    torch.testing.assert_close(y, torch.stack([model(z) for model, z in zip(models, xs, strict=True)]))
    for i, model in enumerate(models):
        torch.testing.assert_close(buffers["running_mean"][i], model.running_mean)


@every_preset
def test_func_grad_equals_backward_and_updates_the_buffers_it_was_given(name):
    layer, x = make(name)
    twin = copy.deepcopy(layer)
    want = everything(twin, x)
    buffers = {key: b.clone() for key, b in layer.named_buffers()}
    parameters = dict(layer.named_parameters())
    w = torch.linspace(-1, 1, x.numel()).view_as(x)
    of_p, of_x = grad(lambda p, x, b: (functional_call(layer, (p, b), (x,)) * w).sum(), argnums=(0, 1))(
        parameters, x, buffers
    )
    torch.testing.assert_close(of_x, want["dx"])
    for key, g in of_p.items():
        torch.testing.assert_close(g, want[f"grad of {key}"])
    for key, b in twin.named_buffers():
        torch.testing.assert_close(buffers[key], b)


@pytest.mark.parametrize("name", [name for name in HOLDING if name != "Virtual"])
def test_func_grad_refuses_captured_memory_by_name(name):
    layer, x = make(name)
    with pytest.raises(RuntimeError, match=r"running_mean is captured by torch\.func\.grad"):
        grad(lambda x: layer(x).sum())(x)
    assert not layer.num_batches_tracked.any()


@every_preset
def test_per_sample_gradients_by_vmap_of_grad(name):
    layer, x = make(name)
    layer.eval()
    parameters, buffers = dict(layer.named_parameters()), dict(layer.named_buffers())

    def loss(p, z):
        return functional_call(layer, (p, buffers), (z.unsqueeze(0),)).pow(2).sum()

    if not parameters:
        pytest.skip("this preset has no parameter to take a gradient of")
    got = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, z in enumerate(x):
        one = grad(loss)(parameters, z)
        for key in parameters:
            torch.testing.assert_close(got[key][i], one[key])


@every_preset
def test_jvp_equals_finite_differences(name):
    layer, x = make(name, torch.float64)
    if name in REMEMBERING or name in SOURCES:
        hs.freeze(layer, inplace=True)  # jvp may not write to what it captured
    v, h = torch.randn_like(x), 1e-6
    _, tangent = jvp(layer, (x,), (v,))
    torch.testing.assert_close(tangent, (layer(x + h * v) - layer(x - h * v)) / (2 * h), rtol=1e-6, atol=1e-6)


# r and d are constants to renorm's gradient, so it is no derivative: test_sources has what it is.
with_a_derivative = pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("Renorm")])


@with_a_derivative
def test_forward_mode_through_batch_statistics_equals_finite_differences(name):
    layer, x = make(name, torch.float64)
    v, h = torch.randn_like(x), 1e-6

    def f(z):
        with hs.trial(layer):
            return layer(z)

    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        tangent = torch.autograd.forward_ad.unpack_dual(f(dual)).tangent
    torch.testing.assert_close(tangent, (f(x + h * v) - f(x - h * v)) / (2 * h), rtol=1e-6, atol=1e-6)


@with_a_derivative
@pytest.mark.parametrize("training", [True, False])
def test_first_and_second_derivatives_equal_finite_differences(name, training):
    layer, x = make(name, torch.float64)
    layer.train(training)
    x = x[:2].clone().requires_grad_()
    parameters = tuple(layer.parameters())

    def f(z, *p):
        with hs.trial(layer):
            return functional_call(layer, dict(zip(dict(layer.named_parameters()), p, strict=True)), (z,))

    assert torch.autograd.gradcheck(f, (x, *parameters))
    assert torch.autograd.gradgradcheck(f, (x, *parameters))


@every_preset
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_nothing_and_updates_once(name, reentrant):
    layer, x = make(name)
    want = everything(copy.deepcopy(layer), x)
    assert_same(everything(layer, x, lambda z: checkpoint(layer, z, use_reentrant=reentrant)), want, 0, 0)


@writing
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_compiled_layer_under_checkpointing_updates_once(name, reentrant):
    layer, x = make(name)
    want = everything(copy.deepcopy(layer), x)
    compiled = torch.compile(layer, backend="aot_eager")
    assert_same(everything(layer, x, lambda z: checkpoint(compiled, z, use_reentrant=reentrant)), want)


@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "aot_eager") for name in WRITING), *((name, "inductor") for name in (*REMEMBERING, *READING))],
)
def test_checkpointing_inside_a_compiled_function_updates_once(name, backend):
    layer, x = make(name)
    want = everything(copy.deepcopy(layer), x)
    f = torch.compile(lambda z: checkpoint(layer, z, use_reentrant=False), backend=backend)
    assert_same(everything(layer, x, f), want)


@every_preset
def test_copies_and_pickles_go_on_alike(name):
    layer, x = make(name)
    layer(x)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = make(name)[0]
    loaded.load_state_dict(torch.load(file, weights_only=True))
    want = everything(copy.deepcopy(layer), x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert_same(everything(other, x), want, 0, 0)


@every_preset
def test_on_the_meta_device_shapes_come_out(name):
    layer, x = make(name)
    layer.to("meta")
    z = x.to("meta").requires_grad_()
    y = layer(z)
    y.sum().backward()
    assert y.is_meta
    assert y.shape == x.shape == z.grad.shape


@every_preset
def test_on_a_gpu_the_numbers_are_those_of_the_cpu(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    layer, x = make(name)
    want = everything(copy.deepcopy(layer), x)
    got = everything(layer.cuda(), x.cuda())
    assert_same({key: value.cpu() for key, value in got.items()}, want, 1e-4, 1e-4)


@every_preset
def test_the_route_by_torchs_operators_gives_the_same(name, monkeypatch):
    """What other devices and exported graphs take, asked for on the CPU."""
    from homeostat import routes

    layer, x = make(name)
    want = everything(copy.deepcopy(layer), x)
    chosen = routes.route

    def prefer_aten(x, weight, bias, where, job, wanted, task):
        if where is None and routes.aten_equals(job, wanted):
            return "aten", None
        return chosen(x, weight, bias, where, job, wanted, task)

    monkeypatch.setattr(routes, "route", prefer_aten)
    assert_same(everything(layer, x), want, 1e-4, 1e-4)


@every_preset
def test_the_same_call_twice_is_bitwise_the_same(name):
    layer, x = make(name)
    x = x.repeat_interleave(40, 0)
    first = everything(copy.deepcopy(layer), x)
    for _ in range(3):
        assert_same(everything(copy.deepcopy(layer), x), first, 0, 0)


def test_several_python_threads_normalize_at_once():
    from concurrent.futures import ThreadPoolExecutor

    layer, x = make("LayerNorm")
    want = layer(x)
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(lambda _: layer(x), range(40)):
            assert torch.equal(y, want)
