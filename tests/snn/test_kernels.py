"""Every engine against the unfused loop of the eager engine: equal spikes, gradients within rounding.

Triton runs in its interpreter, which has to be switched on before triton is imported: the tests of
that engine run again in a process of their own (see the last test).
"""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from snn import kernels
from snn.coding import direct
from snn.kernels import cpu, cpu_library, fused, lif, triton
from snn.models import build
from snn.neurons import NeuronParameters
from snn.surrogate import SURROGATES, Surrogate

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_cpu = pytest.mark.skipif(
    cpu.ENGINE.unavailable() is not None, reason="the CPU engine cannot be built here"
)
needs_triton = pytest.mark.skipif(
    triton.ENGINE.unavailable() is not None,
    reason="neither CUDA nor Triton's interpreter (own process below)",
)
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"
ENGINES = [
    pytest.param("cpu", torch.float32, marks=needs_cpu),
    pytest.param("cpu", torch.float64, marks=needs_cpu),
    pytest.param("triton", torch.float32, marks=needs_triton),
    pytest.param("triton", torch.bfloat16, marks=needs_triton),
    pytest.param("triton", torch.float16, marks=needs_triton),
]
LAYOUTS = ("contiguous", "channels_last", "static", "time_last", "every_other", "wide")


def current(layout, T, B, C, H, W, dtype, generator):
    """(leaf, view of it ``[T, B, C, H, W]``) in one of the memory layouts."""

    def random(*shape):
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5 + 0.3
        return x.to(dtype).to(DEVICE).requires_grad_()

    if layout == "static":
        leaf = random(B, C, H, W)
        return leaf, direct(leaf * 1, T)
    if layout == "channels_last":
        leaf = random(T, B, H, W, C)
        return leaf, leaf.permute(0, 1, 4, 2, 3)
    if layout == "time_last":
        leaf = random(B, C, H, W, T)
        return leaf, leaf.permute(4, 0, 1, 2, 3)
    if layout == "every_other":
        leaf = random(2 * T, B, C, H, W)
        return leaf, leaf[::2]
    if layout == "wide":
        leaf = random(T, B, C, H, 2 * W)
        return leaf, leaf[..., :W]
    leaf = random(T, B, C, H, W)
    return leaf, leaf * 1


CASES = st.fixed_dictionaries(
    {
        "reset": st.sampled_from(["hard", "soft"]),
        "detach": st.booleans(),
        "decay": st.booleans(),
        "surrogate": st.sampled_from(SURROGATES),
        "beta": st.sampled_from([0.0, 0.5, 0.9, 1.0]) | st.floats(0.01, 0.99),
        "learned": st.booleans(),
        "theta": st.floats(0.3, 2.0),
        "T": st.integers(1, 16) | st.integers(17, 40),
        "shape": st.tuples(*[st.integers(1, 4)] * 2, *[st.integers(1, 5)] * 2)
        | st.just((3, 7, 9, 11)),  # blocks of the CPU engine, the last one not full
        "layout": st.sampled_from(LAYOUTS),
        "grad_layout": st.sampled_from(["dense", "channels_last", "expanded"]),
        "seed": st.integers(0, 2**31),
    }
)


@pytest.mark.parametrize(("engine", "dtype"), ENGINES)
@settings(max_examples=25 if INTERPRETED else 120, suppress_health_check=[HealthCheck.too_slow])
@given(case=CASES)
def test_engine_equals_the_unfused_loop(engine, dtype, case):
    assume(case["T"] <= {"cpu": cpu, "triton": triton}[engine].ENGINE.most_timesteps)
    p = NeuronParameters(
        beta=case["beta"],
        theta=case["theta"],
        reset=case["reset"],
        detach_reset=case["detach"],
        decay_input=case["decay"] and case["beta"] < 1,
        surrogate=Surrogate(case["surrogate"]),
    )
    T, (B, C, H, W) = case["T"], case["shape"]
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    g = torch.Generator().manual_seed(case["seed"])
    leaf, x = current(case["layout"], T, B, C, H, W, dtype, g)
    grad = torch.randn(T, B, H, W, C, generator=g, dtype=torch.float64).to(DEVICE, dtype)
    grad = grad.permute(0, 1, 4, 2, 3)
    if case["grad_layout"] == "dense":
        grad = grad.contiguous()
    elif case["grad_layout"] == "expanded":
        grad = grad[:1, :1, :1].expand(T, B, C, H, W)
    results = []
    for name in ("eager", engine):
        beta = torch.tensor(case["beta"], dtype=state_dtype, device=DEVICE, requires_grad=True)
        spikes = lif(x, p, beta=beta if case["learned"] else None, engine=name)
        inputs = {"current": leaf, **({"beta": beta} if case["learned"] else {})}
        grads = torch.autograd.grad(spikes, list(inputs.values()), grad, retain_graph=True)
        results.append((spikes, dict(zip(inputs, grads, strict=True))))
    (spikes, wanted), (own_spikes, found) = results
    assert torch.equal(own_spikes, spikes)
    assert own_spikes.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    incoming = grad.double().norm()
    for name, gradient in wanted.items():
        # The gradient of beta is one sum over everything, and so carries every term's rounding.
        allowed = tolerance if name != "beta" or dtype == torch.float64 else max(tolerance, 1e-3)
        error = (found[name] - gradient).double().norm()
        # Terms may cancel (attached reset): what is left has the rounding of the terms.
        assert error <= allowed * max(gradient.double().norm(), 0.1 * incoming), (name, error)


@pytest.mark.parametrize(("engine", "dtype"), ENGINES)
def test_only_the_current_is_kept_for_backward_and_nothing_without_gradients(engine, dtype):
    x = torch.rand(4, 2, 3, dtype=dtype, device=DEVICE).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lif(x, NeuronParameters(), engine=engine)
        assert [t.data_ptr() for t in kept] == [x.data_ptr()]
        kept.clear()
        with torch.no_grad():
            lif(x, NeuronParameters(), engine=engine)
        assert kept == []


@pytest.mark.parametrize(("engine", "dtype"), ENGINES)
def test_a_static_current_keeps_one_timestep_and_its_gradient_is_the_sum(engine, dtype):
    if dtype in (torch.bfloat16, torch.float16):
        pytest.skip("sums of halves are compared above")
    x = torch.rand(3, 5, dtype=dtype, device=DEVICE).requires_grad_()
    y = x * 2
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        spikes = lif(direct(y, 8), NeuronParameters(), engine=engine)
    assert [t.untyped_storage().nbytes() for t in kept] == [y.nbytes]
    (found,) = torch.autograd.grad(spikes.sum(), x, retain_graph=True)
    (wanted,) = torch.autograd.grad(lif(direct(y, 8), NeuronParameters(), engine="eager").sum(), x)
    assert torch.allclose(found, wanted, rtol=1e-5)


@needs_cpu
@pytest.mark.parametrize("engine", ["eager", "cpu"])
def test_gradients_reach_a_static_current_only_along_the_graph(engine):
    w = torch.rand(3, 5, requires_grad=True)
    y = w * 2
    assert not lif(direct(y.detach(), 4), NeuronParameters(), engine=engine).requires_grad
    leaf = direct(y.detach(), 4).requires_grad_()
    (g,) = torch.autograd.grad(lif(leaf, NeuronParameters(), engine=engine).sum(), leaf)
    assert g.shape == (4, 3, 5)


@needs_cpu
def test_spikes_keep_the_layout_of_the_current():
    x = torch.randn(8, 3, 5, 5).to(memory_format=torch.channels_last).unflatten(0, (4, 2))
    spikes = lif(x, NeuronParameters(), engine="cpu")
    assert spikes.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


@needs_cpu
def test_calls_of_different_sizes_share_one_pool(monkeypatch):
    """A network's layers differ in how many threads pay; pools of every number would add up."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for threads in (2, 3, 4):
        x = torch.zeros(2, 1, threads * cpu._ELEMENTS_PER_THREAD // 2)
        lif(x, NeuronParameters(), engine="cpu")
    names = [t.name for t in threading.enumerate() if t.name.startswith("cpu")]
    assert len(names) == len(set(names)) > 0  # a pool numbers its threads


def test_no_more_threads_work_than_asked_for_and_results_keep_their_order():
    used = set()
    cpu.spread(lambda i: used.add(threading.get_ident()), [(i,) for i in range(50)], 2)
    assert len(used) <= 2
    assert cpu.spread(lambda i: i, [(i,) for i in range(7)], 3) == list(range(7))


@needs_cpu
def test_any_number_of_threads_gives_the_same_bits():
    x = (torch.randn(5, 2, 300_001) * 2).requires_grad_()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            s = lif(x, NeuronParameters(reset="soft"), engine="cpu")
            results.append((s, torch.autograd.grad(s.sum(), x)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_cpu
@pytest.mark.parametrize("shape", [(3, 0, 4), (1, 1), (2, 1, 1, 1, 1, 1)])
def test_empty_and_one_neuron_tensors(shape):
    x = torch.rand(shape).requires_grad_()
    s = lif(x, NeuronParameters(), engine="cpu")
    assert s.shape == shape
    s.sum().backward()
    assert x.grad.shape == shape


@needs_cpu
def test_whole_network_in_float64_is_the_same_with_either_engine(monkeypatch):
    torch.manual_seed(0)
    model = build("convnet", input_shape=(2, 8, 8), num_classes=3, channels=(4, 6), hidden=(8,)).double()
    results = []
    for engine in ("eager", "cpu"):
        monkeypatch.setenv("SPIKEPRUNE_ENGINE", engine)
        logits = model(
            direct(torch.rand(5, 2, 8, 8, dtype=torch.float64), 4) * 0 + torch.linspace(0, 2, 8).double()
        )
        loss = logits.square().mean()
        results.append([logits, *torch.autograd.grad(loss, list(model.parameters()))])
    for wanted, found in zip(*results, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-12)
    assert results[0][0].abs().sum() > 0


class TestChoice:
    def test_unknown_engine(self, monkeypatch):
        x = torch.rand(2, 3)
        with pytest.raises(ValueError, match="engine: 'fast' is unknown; choose one of auto"):
            lif(x, NeuronParameters(), engine="fast")
        monkeypatch.setenv("SPIKEPRUNE_ENGINE", "quick")
        with pytest.raises(ValueError, match="SPIKEPRUNE_ENGINE: 'quick' is unknown"):
            lif(x, NeuronParameters())

    def test_an_engine_asked_for_by_name_never_falls_back(self):
        with pytest.raises(ValueError, match=r"engine: 'cpu' cannot run here: dtype torch\.bfloat16"):
            lif(torch.rand(2, 3, dtype=torch.bfloat16), NeuronParameters(), engine="cpu")

    @needs_cpu
    def test_auto_takes_the_fused_engine_of_the_device_or_eager(self):
        assert kernels.choose(torch.rand(2, 3)) == "cpu"
        assert kernels.choose(torch.rand(2, 3, dtype=torch.bfloat16)) == "eager"
        assert kernels.choose(torch.rand(2, 3, device="meta")) == "eager"

    def test_the_environment_forces_and_the_argument_wins(self, monkeypatch):
        monkeypatch.setenv("SPIKEPRUNE_ENGINE", "eager")
        assert kernels.choose(torch.rand(2, 3)) == "eager"
        assert kernels.choose(torch.rand(2, 3), "auto") != "eager" or cpu.ENGINE.unavailable()

    def test_without_a_compiler_eager_runs_and_one_log_line_says_so(self, monkeypatch, caplog):
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CC", raising=False)
        cpu_library.load.cache_clear()
        kernels._available.cache_clear()
        try:
            with caplog.at_level(logging.WARNING, "snn.kernels"):
                for _ in range(3):
                    assert lif(torch.ones(2, 3), NeuronParameters()).sum() == 6
            assert len(caplog.records) == 1
            assert "no C compiler found" in caplog.text
            with pytest.raises(ValueError, match="cannot run here: no C compiler"):
                lif(torch.ones(2, 3), NeuronParameters(), engine="cpu")
        finally:
            cpu_library.load.cache_clear()
            kernels._available.cache_clear()


class TestBuild:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SPIKEPRUNE_CACHE", str(tmp_path / "cache"))
        cpu_library.load.cache_clear()
        yield tmp_path / "cache"
        cpu_library.load.cache_clear()

    @needs_cpu
    def test_built_once_then_found(self, folder, monkeypatch):
        assert cpu.ENGINE.unavailable() is None
        (library,) = folder.iterdir()
        cpu_library.load.cache_clear()
        monkeypatch.setattr(cpu_library, "_compile", lambda *_: pytest.fail("compiled again"))
        assert cpu.ENGINE.unavailable() is None
        assert list(folder.iterdir()) == [library]
        assert folder.stat().st_mode & 0o777 == 0o700

    def test_a_compiler_that_fails_is_named_with_its_words(self, folder, tmp_path, monkeypatch):
        compiler = tmp_path / "broken-cc"
        compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho no such target >&2; exit 1\n')
        compiler.chmod(0o755)
        monkeypatch.setenv("CC", str(compiler))
        assert "broken-cc failed: no such target" in cpu.ENGINE.unavailable()
        assert list(folder.iterdir()) == []

    def test_a_folder_others_can_write_to_is_not_trusted(self, folder):
        folder.mkdir()
        folder.chmod(0o777)
        assert "only this user can write to" in cpu.ENGINE.unavailable()


def test_which_layouts_run_without_a_copy():
    x = torch.zeros(2, 3, 4, 5)
    for y in (x, x.permute(3, 1, 0, 2), x.to(memory_format=torch.channels_last), x[:1], x[1, :1, :1, :1]):
        assert fused._is_dense(y)
    for y in (x[..., :2], x[:, ::2], torch.zeros(1, 2).expand(3, 2)):
        assert not fused._is_dense(y)


@pytest.mark.skipif(INTERPRETED, reason="this is the process of its own")
def test_triton_in_its_interpreter(pytestconfig):
    mark = pytestconfig.getoption("markexpr")
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-k", "triton", "-m", mark, "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "7 passed" in done.stdout


def test_currents_of_many_timesteps_are_not_for_a_loop_that_is_unrolled(monkeypatch):
    monkeypatch.setattr(type(kernels.cpu.ENGINE), "most_timesteps", 4)
    assert kernels.choose(torch.zeros(5, 1)) == "eager"
    with pytest.raises(ValueError, match="cannot run here: more than 4 timesteps"):
        kernels.choose(torch.zeros(5, 1), "cpu")


def test_what_is_not_transformed_within_a_transform_is_run_as_well():
    current = torch.rand(3, 4)
    expected = kernels.lif(current, NeuronParameters())
    found = torch.func.vmap(lambda w: w * kernels.lif(current, NeuronParameters()))(torch.ones(2))
    assert torch.equal(found, expected.expand(2, 3, 4))
