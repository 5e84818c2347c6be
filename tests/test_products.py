"""The quicker matrix products of sweeps: the same numbers, used only where they mean the same."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny

from helpers import products, sweep_heads
from helpers.products import quick_products


@pytest.fixture
def used(monkeypatch):
    """The shapes of the products that oneDNN made."""
    product, found = products._by_onednn(), []
    if product is None:
        pytest.skip("this PyTorch has no oneDNN")

    def counted(x, weight, bias):
        found.append((tuple(x.shape), tuple(weight.shape)))
        return product(x, weight, bias)

    monkeypatch.setattr(products, "_by_onednn", lambda: counted)
    monkeypatch.setattr(products, "_is_intel", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    return found


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (2, 3, 5, 6), (0, 6)])
@pytest.mark.parametrize("with_bias", [True, False])
@torch.no_grad()
def test_linear_is_what_sums_by_hand_say(used, shape, with_bias):
    x, weight, bias = torch.randn(shape), torch.randn(4, 6), torch.randn(4) if with_bias else None
    by_hand = (x.double().unsqueeze(-2) * weight.double()).sum(-1) + (bias.double() if with_bias else 0)
    with quick_products():
        found = [F.linear(x, weight, bias), F.linear(x, weight, bias=bias), torch.nn.functional.linear(x, weight, bias)]
    for one in found:
        torch.testing.assert_close(one.double(), by_hand, rtol=1e-5, atol=1e-5)
    assert used == [(shape, (4, 6))] * 3


@torch.no_grad()
def test_gpt2s_own_projection_and_slices_of_a_stream(used):
    bias, weight, stream = torch.randn(4), torch.randn(6, 4), torch.randn(3, 9, 6)
    for x in (stream[0], stream[:, -1], stream.transpose(0, 1)[2], stream[1, ::2]):
        with quick_products():
            found = torch.addmm(bias, x, weight)
        torch.testing.assert_close(found, bias + (x.unsqueeze(-1) * weight).sum(-2), rtol=1e-5, atol=1e-5)
    assert len(used) == 4


def test_what_means_something_else_goes_its_usual_way(used):
    x, weight, bias = torch.randn(3, 6), torch.randn(4, 6), torch.randn(4)
    with quick_products():
        assert F.linear(x, weight.requires_grad_(), bias).requires_grad
        with torch.no_grad():
            assert F.linear(x.double(), weight.double()).dtype == torch.float64
            assert F.linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
            assert F.linear(x.to("meta"), weight.to("meta")).device.type == "meta"
            assert F.linear(x, weight[0]).shape == (3,)
            assert torch.addmm(torch.randn(3, 4), x, weight.T).shape == (3, 4)
            assert torch.addmm(bias, x, weight.T, beta=0).equal(x @ weight.T)
            with torch.autocast("cpu", torch.bfloat16):
                assert F.linear(x, weight).dtype == torch.bfloat16
    assert not used


@torch.no_grad()
def test_outside_the_block_nothing_is_changed(used, monkeypatch):
    x, weight = torch.randn(3, 6), torch.randn(4, 6)
    with pytest.raises(RuntimeError, match="on purpose"), quick_products():
        raise RuntimeError("on purpose")
    F.linear(x, weight)
    monkeypatch.setattr(torch.backends, "mkldnn", SimpleNamespace(enabled=False))  # the user's own switch
    with quick_products():
        F.linear(x, weight)
    assert not used


@torch.no_grad()
def test_on_an_intel_processor_mkl_keeps_the_products(used, monkeypatch):
    monkeypatch.setattr(products, "_is_intel", lambda: True)
    x, weight = torch.randn(3, 6), torch.randn(4, 6)
    with quick_products():
        assert F.linear(x, weight).equal(x @ weight.T)
    assert not used


@pytest.mark.parametrize(("intel", "capability"), [(True, "AVX512"), (False, "AVX2"), (False, "DEFAULT")])
@torch.no_grad()
def test_processors_on_which_it_is_no_faster_keep_their_own_products(used, monkeypatch, intel, capability):
    monkeypatch.setattr(products, "_is_intel", lambda: intel)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    x, weight = torch.randn(3, 6), torch.randn(4, 6)
    with quick_products():
        assert F.linear(x, weight).equal(x @ weight.T)
    assert not used


@pytest.mark.parametrize(
    ("file", "processor", "intel"),
    [
        ("vendor_id : GenuineIntel", "", True),
        ("vendor_id : AuthenticAMD", "", False),
        (None, "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", True),
        (None, "AMD64 Family 25 Model 80 Stepping 0, AuthenticAMD", False),
        (None, "arm", False),
    ],
)
def test_the_processors_maker_is_read(monkeypatch, tmp_path, file, processor, intel):
    if file:
        (tmp_path / "cpuinfo").write_text(file)
    monkeypatch.setattr(products, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(products.platform, "processor", lambda: processor)
    assert products._is_intel.__wrapped__() is intel


@pytest.mark.parametrize("wrong", [AttributeError, "zeros"])
@torch.no_grad()
def test_a_product_that_is_gone_or_wrong_is_not_used(monkeypatch, wrong):
    class Operators:
        def __getattr__(self, name):
            if wrong == "zeros":
                return lambda x, weight, *_: torch.zeros(*x.shape[:-1], len(weight))
            raise AttributeError(name)

    monkeypatch.setattr(products, "_is_intel", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.ops, "mkldnn", Operators(), raising=False)
    products._by_onednn.cache_clear()
    try:
        assert products._by_onednn() is None
        x, weight = torch.randn(3, 6), torch.randn(4, 6)
        with quick_products():
            assert F.linear(x, weight).equal(x @ weight.T)
    finally:
        products._by_onednn.cache_clear()


@torch.no_grad()
def test_a_mode_of_ones_own_sees_each_product(used):
    class Doubled(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            found = function(*args, **kwargs or {})
            return 2 * found if function is F.linear else found

    x, weight = torch.randn(3, 6), torch.randn(4, 6)
    expected = 2 * F.linear(x, weight, None)
    with Doubled(), quick_products():
        torch.testing.assert_close(F.linear(x, weight, None), expected)
    assert not used
    with torch.device("cpu"), quick_products():  # PyTorch's own, which changes no product
        F.linear(x, weight, None)
    assert len(used) == 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_sweep_uses_them_and_leaves_the_model_as_it_was(used, family):
    lm = tiny(family, torch.float32)
    prompt = torch.arange(2, 9)
    found = sweep_heads(lm, prompt, 5)
    assert len(used) > lm.n_blocks and any(lm.vocabulary == out for _, (out, _) in used)
    made = len(used)
    before = lm.logits(prompt)
    assert len(used) == made
    torch.testing.assert_close(found, sweep_heads(tiny(family), prompt, 5).float(), rtol=0, atol=1e-5)
    assert lm.logits(prompt).equal(before)
