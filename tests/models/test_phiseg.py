import pytest
import torch
from torch import nn

from revgrad.memory import estimate, measure
from revgrad.models import LossTerms, PHiSeg, RevPHiSeg
from revgrad.models.elbo import ResidualCrossEntropy
from revgrad.models.phiseg import PRESETS

SMALL = {"channels": (4, 6, 8), "latent_levels": 2}
# Where the reference code differs: an up block that it builds and never uses, in either encoder.
UNUSED = {"phiseg": 38_400, "revphiseg": 37_568}


def count(module):
    return sum(p.numel() for p in module.parameters())


def data(spatial_dims=2, size=8, classes=3, dtype=torch.float64):
    torch.manual_seed(0)
    shape = (2, *[size] * spatial_dims)
    return torch.randn(2, 1, *shape[1:], dtype=dtype), torch.randint(classes, shape)


def made(cls, spatial_dims=2, classes=3, **options):
    torch.manual_seed(1)
    return cls(spatial_dims, 1, classes, **{**SMALL, **options}).double()


def step(net, image, masks):
    """Loss and gradients with the same draws."""
    torch.manual_seed(2)
    net.zero_grad()
    found = net.loss(image, masks)
    found.total.backward()
    return found, [p.grad for p in net.parameters()]


def expect_close(grads, expected):
    """To rounding; that of a bias in front of a norm is zero but for rounding."""
    largest = max(float(g.abs().max()) for g in expected)
    for found, known in zip(grads, expected, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-8, atol=1e-13 * largest)


@pytest.mark.parametrize(
    ("preset", "posterior", "prior", "likelihood", "total"),
    [
        ("phiseg", 9_429_332, 9_428_756, 5_655_242, 24_513_330),
        ("revphiseg", 6_178_420, 6_178_356, 3_945_514, 16_302_290),
    ],
)
def test_the_weights_are_those_of_the_reference_less_the_unused(
    preset, posterior, prior, likelihood, total
):
    with torch.device("meta"):
        net = PRESETS[preset](2, 1, 2)
    unused = UNUSED[preset]
    assert count(net.posterior_network) == posterior - unused
    assert count(net.prior_network) == prior - unused
    assert count(net.likelihood) == likelihood
    assert count(net) == total - 2 * unused


def test_every_weight_of_the_reference_configuration_gets_a_gradient():
    for cls in (PHiSeg, RevPHiSeg):
        net = made(cls)
        _, grads = step(net, *data())
        assert all(g is not None and g.abs().sum() > 0 for g in grads if g.dim() > 1)


def test_the_variant_of_equal_size_has_about_the_weights_of_phiseg():
    with torch.device("meta"):
        plain, equal = (count(PRESETS[name](2, 1, 2)) for name in ("phiseg", "revphiseg-iso"))
    assert abs(equal / plain - 1) < 0.05


def test_the_controlled_pair_differs_in_nothing_but_the_blocks():
    with torch.device("meta"):
        plain, reversible = (PRESETS[n](2, 1, 2) for n in ("revphiseg-twin", "revphiseg"))
    assert plain.kl_weights == reversible.kl_weights

    # The same rows in the same places, and the same convolutions around them.
    rows = [
        [n for n, m in net.named_modules() if n.endswith(".blocks")] for net in (plain, reversible)
    ]
    assert rows[0] == rows[1]
    for name in rows[0]:
        units, couplings = plain.get_submodule(name), reversible.get_submodule(name).layers
        assert 2 * len(units) == len(couplings)
    own = [
        {n: p.shape for n, p in net.named_parameters() if in_both(n)} for net in (plain, reversible)
    ]
    assert own[0] == own[1]


def in_both(name):
    """Neither of a row nor of the 1x1 units that only reversible rows have before them."""
    return not any(part in name for part in (".blocks.", ".glue.", ".entries."))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("cls", [PHiSeg, RevPHiSeg])
@pytest.mark.parametrize("classes", [2, 5])
def test_it_keeps_the_protocol(cls, spatial_dims, classes):
    net = made(cls, spatial_dims, classes)
    image, masks = data(spatial_dims, classes=classes)
    space = image.shape[2:]
    found = net(image, masks)
    assert isinstance(found, LossTerms)
    assert found.total.dim() == 0 and found.total.requires_grad
    assert found.reconstruction.shape == found.kl.shape == (2,)
    found.total.backward()
    net.eval()
    with torch.no_grad():
        assert net(image).shape == (2, classes, *space)
        assert net.sample(image, 3).shape == (2, 3, classes, *space)
        assert net.reconstruct(image, masks).shape == (2, classes, *space)
        for distributions in (net.prior(image), net.posterior(image, masks)):
            sizes = [(2, 2, *[s // d for s in space]) for d in (2, 4)]
            assert [d.mean.shape for d in distributions] == sizes
            assert all((d.scale > 0).all() for d in distributions)


@pytest.mark.parametrize("norm", [("batch", {"eps": 1e-3, "momentum": 0.01}), "instance", None])
@pytest.mark.parametrize("cls", [PHiSeg, RevPHiSeg])
def test_saving_memory_changes_neither_loss_nor_gradients(cls, norm):
    options = {"norm": norm, "channels": (4, 6, 8, 8)}
    stock = made(cls, **options, recompute_glue=False, save_memory=False)
    saving = made(cls, **options, recompute_glue=True)
    image, masks = data(size=16)
    assert saving.state_dict().keys() == stock.state_dict().keys()
    before, expected = step(stock, image, masks)
    after, grads = step(saving, image, masks)
    torch.testing.assert_close(after.total, before.total, rtol=1e-12, atol=0)
    expect_close(grads, expected)
    for found, known in zip(saving.buffers(), stock.buffers(), strict=True):
        torch.testing.assert_close(found, known, rtol=1e-10, atol=1e-12)


def test_saving_memory_can_be_switched():
    net = made(RevPHiSeg)
    _, saving = step(net, *data())
    net.save_memory = False
    assert not any(getattr(m, "save_memory", False) for m in net.modules())
    _, plain = step(net, *data())
    expect_close(saving, plain)


def test_without_bias_the_last_layers_still_have_one():
    for cls in (PHiSeg, RevPHiSeg):
        convs = {n: m for n, m in made(cls, bias=False).named_modules() if isinstance(m, nn.Conv2d)}
        last = {n for n in convs if n.rpartition(".")[2] in ("mean", "scale") or "heads" in n}
        assert len(last) == 2 * 2 * 2 + 2  # of two encoders with two levels, and two heads
        assert {n for n, conv in convs.items() if conv.bias is not None} == last


def test_the_stock_network_is_made_of_torchs_layers():
    own = {type(m) for m in PHiSeg(2, 1, 2, **SMALL).modules() if not list(m.children())}
    assert own <= {
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU,
        nn.AvgPool2d,
        nn.Upsample,
        nn.Sequential,
        ResidualCrossEntropy,
    }


@pytest.mark.parametrize("cls", [PHiSeg, RevPHiSeg])
def test_samples_in_evaluation_do_not_depend_on_their_number_at_once(cls, monkeypatch):
    net = made(cls).eval()
    image, _ = data()
    # Scales of nearly zero: every draw is the mean, so all ways of batching must agree.
    for encoder in (net.prior_network, net.posterior_network):
        for latent in encoder.latents:
            nn.init.zeros_(latent.scale.weight)
            nn.init.constant_(latent.scale.bias, -1e3)
    with torch.no_grad():
        many = net.sample(image, 5)
        monkeypatch.setattr("revgrad.models.phiseg._SAMPLES_AT_ONCE", 4)
        few = net.sample(image, 5)
        torch.testing.assert_close(many, few, rtol=0, atol=1e-3)
        torch.testing.assert_close(many[:, :1].expand_as(many), many, rtol=0, atol=1e-3)


def test_the_priors_features_are_computed_once_for_all_samples():
    net = made(PHiSeg).eval()
    calls = []
    net.prior_network.stages[0].register_forward_hook(lambda *_: calls.append(1))
    net.sample(data()[0], 40)
    assert len(calls) == 1


def test_the_prior_is_given_the_posteriors_draws_in_training():
    net = made(PHiSeg)
    seen = {}
    for name, encoder in (("prior", net.prior_network), ("posterior", net.posterior_network)):
        encoder.up[0].register_forward_pre_hook(lambda _, z, name=name: seen.update({name: z[0]}))
    net.loss(*data())
    assert torch.equal(seen["prior"], seen["posterior"])


def test_the_likelihood_never_sees_the_image():
    net = made(RevPHiSeg).eval()
    image, masks = data()
    _, latents = net._posterior(image, masks, draw=False)
    torch.testing.assert_close(
        net.reconstruct(image, masks), sum_at_full_size(net.likelihood(latents))
    )


def sum_at_full_size(logits):
    size = logits[0].shape[2:]
    return sum(nn.functional.interpolate(level, size=size) for level in logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_levels": 4}, "latent_levels must be 1 to 3"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"kl_weights": (1.0,)}, "kl_weights must be 2 finite numbers"),
        ({"kl_weights": (1.0, -1.0)}, "not negative"),
        ({"kl_weights": (1.0, float("nan"))}, "finite"),
        ({"depth": 0}, "depth"),
        ({"channels": (), "latent_levels": 1}, "channels"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(PHiSeg, **options)


def test_wrong_input_is_refused():
    net = made(PHiSeg)
    image, masks = data()
    with pytest.raises(ValueError, match="multiple of 4"):
        net.sample(image[..., :6], 1)
    with pytest.raises(ValueError, match="labels must be 0 to 2"):
        net.loss(image, masks + 1)
    with pytest.raises(ValueError, match="n must be at least 1"):
        net.sample(image, 0)


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_under_autocast_saving_memory_changes_nothing(arithmetic):
    net = made(RevPHiSeg, arithmetic=arithmetic).float()
    image, masks = data(dtype=torch.float32)
    found = []
    for net.save_memory in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            torch.manual_seed(2)
            net.zero_grad()
            total = net.loss(image, masks).total
        total.backward()
        assert total.dtype == torch.float32 and total.isfinite()
        found.append([total.detach(), *(p.grad for p in net.parameters())])
    largest = max(float(g.abs().max()) for g in found[1])
    for saved, plain in zip(*found, strict=True):
        torch.testing.assert_close(
            saved, plain, rtol=0, atol=(2e-2 if arithmetic == "float" else 0) * largest
        )


@pytest.mark.parametrize("options", [{}, {"prior_components": 2}])
@pytest.mark.parametrize("cls", [PHiSeg, RevPHiSeg])
def test_all_weights_may_be_in_half_precision(cls, options):
    net = made(cls, **options).bfloat16()
    image, masks = data(dtype=torch.bfloat16)
    found, grads = step(net, image, masks)
    assert found.total.dtype == torch.float32 and found.total.isfinite()
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in grads)
    with torch.no_grad():
        assert net.eval().sample(image, 2).dtype == torch.bfloat16
        assert net.reconstruct(image, masks).isfinite().all()


def test_in_exact_arithmetic_the_gradients_are_those_of_ordinary_autograd_to_the_bit():
    net = made(RevPHiSeg, arithmetic="exact").float()
    image, masks = data(dtype=torch.float32)
    _, saving = step(net, image, masks)
    net.save_memory = False
    _, plain = step(net, image, masks)
    assert all(torch.equal(a, b) for a, b in zip(saving, plain, strict=True))


def test_far_less_is_stored_than_by_ordinary_autograd():
    saved = [
        bytes_saved(made(PHiSeg, **options))
        for options in ({}, {"reversible": True, "recompute_glue": True})
    ]
    assert saved[1] < saved[0] / 3


def bytes_saved(net):
    """What autograd keeps of a forward pass besides parameters, each storage once."""
    own = {p.data_ptr() for p in net.parameters()}
    sizes, held = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes() * (storage.data_ptr() not in own)
        held.append(storage)
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net.loss(*data(size=64))
    return sum(sizes.values())


def test_its_memory_can_be_estimated_without_data():
    others = measure(lambda: None).peak  # what tests before this one left behind
    net = made(RevPHiSeg).float()
    image, masks = data(size=64, dtype=torch.float32)
    optimizer = torch.optim.Adam(net.parameters())

    def train():
        optimizer.zero_grad()
        net.loss(image, masks).total.backward()
        optimizer.step()

    measured = measure(train, net).peak_without_scratch - others
    options = {"device": "cpu", "loss": lambda found: found.total}
    expected = estimate(net, (image, masks), torch.optim.Adam, **options).allocated
    assert abs(expected / measured - 1) < 0.05
