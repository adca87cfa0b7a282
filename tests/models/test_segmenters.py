"""What every segmentation network keeps to, whatever it is made of."""

import pytest
import torch

from revgrad.models import DeterministicSegmenter, PHiSeg, ProbabilisticUNet, RevPHiSeg, UNet
from revgrad.models.baselines import (
    DropoutUNet,
    Image2ImageVAE,
    IndependentPixels,
    MHeads,
    UNetEnsemble,
)
from revgrad.models.deterministic import iunet_segmenter

CHANNELS = (4, 6, 8)


def small(network, **options):
    """Makes a network of three levels: called with spatial_dims and out_channels."""

    def make(spatial_dims=2, out_channels=2, **more):
        arguments = {"channels": CHANNELS, "depth": 2, **options, **more}
        return network(spatial_dims, 1, out_channels, **arguments)

    return make


def independent_pixels(*args, **options):
    return IndependentPixels(UNet(*args, **options))


def deterministic(spatial_dims, in_channels, out_channels, **options):
    net = iunet_segmenter(spatial_dims, in_channels, out_channels, (16, 16), (1, 1)).net
    return DeterministicSegmenter(net, spatial_dims, in_channels, out_channels, divisor=4)


# Of each: how it is made. Another network comes in with one line.
NETWORKS = {
    "unet": small(UNet),
    "unet-reversible": small(UNet, reversible=True),
    "deterministic": small(deterministic),
    "probabilistic": small(ProbabilisticUNet),
    "probabilistic-reversible": small(ProbabilisticUNet, reversible=True, norm="batch"),
    "probabilistic-exp": small(ProbabilisticUNet, scale="exp", average_scale=True),
    "phiseg": small(PHiSeg, latent_levels=2, latent_depth=1, decoder_depth=1),
    "revphiseg": small(RevPHiSeg, latent_levels=2, latent_depth=1, decoder_depth=1),
    "dropout": small(DropoutUNet, dropout_levels=2),
    "ensemble": small(UNetEnsemble, members=3),
    "m-heads": small(MHeads, heads=3),
    "vae": small(Image2ImageVAE),
    "independent-pixels": small(independent_pixels),
}
DETERMINISTIC = ("unet", "unet-reversible", "deterministic")
NOT_DRAWN = (*DETERMINISTIC, "ensemble", "m-heads")  # the same samples at each call
# One latent level, so that the prior does not depend on what is drawn.
ONE_LATENT = ("probabilistic", "probabilistic-reversible", "probabilistic-exp", "vae")
LATENT = (*ONE_LATENT, "phiseg", "revphiseg")
REVERSIBLE = ("unet-reversible", "probabilistic-reversible", "revphiseg")


@pytest.fixture(params=NETWORKS)
def name(request):
    return request.param


def batch(spatial_dims=2, out_channels=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    space = [8] * spatial_dims
    image = torch.randn(2, 1, *space, generator=generator, dtype=dtype)
    return image, torch.randint(out_channels, (2, *space), generator=generator)


def built(name, *args, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return NETWORKS[name](*args, **options).to(dtype)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("out_channels", [2, 5])
def test_shapes(name, spatial_dims, out_channels):
    net = built(name, spatial_dims, out_channels)
    image, masks = batch(spatial_dims, out_channels)
    space = image.shape[2:]
    terms = net(image, masks)
    assert terms.total.shape == ()
    assert terms.reconstruction.dim() == terms.kl.dim() == 1
    assert not terms.reconstruction.requires_grad and not terms.kl.requires_grad
    terms.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.sample(image, 3).shape == (2, 3, out_channels, *space)
    assert net(image).shape == (2, out_channels, *space)
    assert len(net.prior(image)) == len(net.posterior(image, masks)) == len(terms.kl)
    if name in LATENT:
        assert net.reconstruct(image, masks).shape == (2, out_channels, *space)


def test_the_loss_falls_on_a_task_that_has_two_answers(name):
    net = built(name)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    image = batch()[0][:1].repeat(2, 1, 1, 1)
    image[:, :, 2:6, 2:6] += 2
    answers = torch.zeros(2, 8, 8, dtype=torch.int64)
    answers[0, 2:6, 2:6] = 1  # one annotator outlines the square, the other sees nothing
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        total = net(image, answers).total
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_seed_repeats_the_samples(name):
    net = built(name).eval()
    image, _ = batch()
    draws = []
    for _ in range(2):
        torch.manual_seed(1)
        draws.append(net.sample(image, 3))
    assert torch.equal(*draws)


def test_samples_differ_unless_the_network_is_deterministic(name):
    net = built(name).eval()
    samples = net.sample(batch()[0], 3)
    assert torch.equal(samples[:, 0], samples[:, 1]) == (name in DETERMINISTIC)


def test_a_new_call_draws_anew_where_there_is_something_to_draw(name):
    net = built(name).eval()
    image, _ = batch()
    assert torch.equal(net.sample(image, 2), net.sample(image, 2)) == (name in NOT_DRAWN)


def test_what_sees_the_image_runs_once_for_all_samples(name):
    net = built(name).eval()
    calls = []
    for path, module in net.named_modules():
        if getattr(module, "in_channels", None) == 1 and hasattr(module, "weight"):
            module.register_forward_hook(lambda *_, path=path: calls.append(path))
    with torch.no_grad():
        net.sample(batch()[0], 3)
    assert calls
    assert len(calls) == len(set(calls))
    assert not any("posterior" in path for path in calls)


@pytest.mark.parametrize("name", REVERSIBLE)
def test_recomputed_gradients_are_those_of_autograd(name):
    net = built(name, dtype=torch.float64)
    image, masks = batch(dtype=torch.float64)
    found = []
    for save_memory in (True, False):
        net.save_memory = save_memory
        assert net.save_memory is save_memory
        net.zero_grad()
        torch.manual_seed(1)
        net(image, masks).total.backward()
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_finite_differences(name):
    net = built(name, act="elu", dtype=torch.float64).eval()
    image, masks = batch(dtype=torch.float64)
    p = next(p for p in net.parameters() if p.dim() > 1)

    def loss():
        torch.manual_seed(1)
        return net(image, masks).total

    (grad,) = torch.autograd.grad(loss(), p)
    direction, step = torch.randn_like(p), 1e-6
    with torch.no_grad():
        p += step * direction
        above = loss()
        p -= 2 * step * direction
        below = loss()
    expected = (above - below) / (2 * step)
    torch.testing.assert_close((grad * direction).sum(), expected, rtol=1e-5, atol=1e-5)


def test_images_and_masks_that_do_not_fit_are_refused(name):
    net = built(name)
    image, masks = batch()
    for call in (lambda x: net.sample(x, 1), net, lambda x: net(x, masks)):
        with pytest.raises(ValueError, match="multiple of 4"):
            call(image[..., :6, :6])
        with pytest.raises(ValueError, match="expected an image"):
            call(image[:, :, None])
    with pytest.raises(ValueError, match="expected masks"):
        net(image, masks[:, None])
    with pytest.raises(ValueError, match="labels must be 0 to 1"):
        net(image, masks + 1)
    with pytest.raises(TypeError, match="integer labels"):
        net(image, masks.float())
    with pytest.raises(ValueError, match="n must be at least 1"):
        net.sample(image, 0)


def test_arrays_and_types_that_do_not_fit_are_refused(name):
    net = built(name)
    image, masks = batch()
    for call in (lambda x: net.sample(x, 1), net, lambda x: net(x, masks)):
        with pytest.raises(TypeError, match=r"expected an image as a torch\.Tensor, not ndarray"):
            call(image.numpy())
        for wrong in (image.double(), image.to(torch.uint8)):
            words = rf"the image is {wrong.dtype} .* take image\.to\(torch\.float32\)"
            with pytest.raises(TypeError, match=words):
                call(wrong)
    with pytest.raises(TypeError, match=r"expected masks as a torch\.Tensor, not ndarray"):
        net(image, masks.numpy())
    assert net.double()(image.double(), masks).total.dtype == torch.float64


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "deterministic"])
@pytest.mark.parametrize("channels", [8, (8, 2.5), "88", ()])
def test_channels_that_are_no_list_of_numbers_are_refused(name, channels):
    with pytest.raises(ValueError, match="channels must be one positive number for each level"):
        NETWORKS[name](channels=channels)


NORMED = ("unet", "phiseg", "revphiseg", "m-heads", "ensemble", "independent-pixels")


@pytest.mark.parametrize("norm", ["batch", ("Instance", {"affine": True})])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("name", NORMED)
def test_an_image_of_one_pixel_on_the_deepest_level_is_named(name, spatial_dims, norm):
    net = built(name, spatial_dims, norm=norm)
    batches = batch(spatial_dims)
    image, masks = (x[(..., *[slice(4)] * spatial_dims)] for x in batches)
    words = rf"image of \(4, 4{', 4' * (spatial_dims - 2)}\) has one pixel on the deepest level"
    with pytest.raises(ValueError, match=words):
        net(image[:1], masks[:1])
    if norm == "batch":
        net(image, masks)
        net.eval()(image[:1], masks[:1])
    wide = torch.cat([image, image], -1), torch.cat([masks, masks], -1)
    net.train()(*wide)
    for module in net.modules():
        if "Norm" in type(module).__name__:
            module.eval()  # frozen, it needs no variance
    if norm == "batch":
        net(image[:1], masks[:1])
    small = built(name, spatial_dims, norm=None)
    assert small(image[:1], masks[:1]).total.isfinite()


def test_a_norm_over_processes_may_see_one_pixel_in_each():
    net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(built("unet"))
    net.check_masks(*(x[:1, ..., :4, :4] for x in batch()))


def test_networks_without_latents_cannot_reconstruct(name):
    if name not in LATENT:
        with pytest.raises(TypeError, match="no latent variables"):
            built(name).reconstruct(*batch())


def test_a_state_dict_makes_the_same_network(name):
    net = built(name)
    image, masks = batch()
    net(image, masks)  # moves running statistics
    torch.manual_seed(5)
    other = NETWORKS[name]()
    other.load_state_dict(net.state_dict())
    draws = []
    for each in (net.eval(), other.eval()):
        torch.manual_seed(1)
        draws.append(each.sample(image, 3))
    assert torch.equal(*draws)


def test_inference_mode(name):
    net = built(name).eval()
    with torch.inference_mode():
        samples = net.sample(batch()[0], 3)
    assert samples.isfinite().all()


def test_bfloat16_autocast_is_finite_and_its_loss_float32(name):
    net = built(name)
    image, masks = batch()
    with torch.autocast("cpu", torch.bfloat16):
        terms = net(image, masks)
        samples = net.sample(image, 2)
    assert terms.total.dtype == torch.float32
    terms.total.backward()
    assert samples.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ONE_LATENT)
def test_the_divergence_in_the_loss_is_that_of_torch(name):
    net = built(name, dtype=torch.float64).eval()
    image, masks = batch(dtype=torch.float64)
    torch.manual_seed(1)
    terms = net(image, masks)
    torch.manual_seed(1)
    pairs = zip(net.posterior(image, masks), net.prior(image), strict=True)
    for kl, (q, p) in zip(terms.kl, pairs, strict=True):
        expected = torch.distributions.kl_divergence(
            torch.distributions.Normal(*q), torch.distributions.Normal(*p)
        )
        assert kl >= 0
        torch.testing.assert_close(kl, expected.flatten(1).sum(1).mean())


def test_small_integers_are_masks_too(name):
    net = built(name).eval()
    image, masks = batch()
    totals = []
    for each in (masks, masks.to(torch.uint8)):
        torch.manual_seed(1)
        totals.append(net(image, each).total)
    assert torch.equal(*totals)


@pytest.mark.cuda
def test_cuda_gives_what_the_cpu_gives(name):
    net = built(name, dtype=torch.float64).eval()
    image, masks = batch(dtype=torch.float64)
    expected = [*net.prior(image), *net.posterior(image, masks)]
    net, image, masks = net.cuda(), image.cuda(), masks.cuda()
    found = [*net.prior(image), *net.posterior(image, masks)]
    if name in ONE_LATENT:
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b.mean.cpu(), a.mean)
            torch.testing.assert_close(b.scale.cpu(), a.scale)
    net(image, masks).total.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert net.sample(image, 2).isfinite().all()
