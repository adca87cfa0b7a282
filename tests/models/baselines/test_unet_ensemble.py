import pytest
import torch

from revgrad.models.baselines import UNetEnsemble


def ensemble():
    torch.manual_seed(0)
    return UNetEnsemble(2, 1, 2, members=3, channels=(4, 4), depth=1, norm=None)


def test_sample_k_is_member_k():
    net = ensemble()
    image = torch.randn(2, 1, 4, 4)
    samples = net.sample(image, 3)
    for k, member in enumerate(net.members):
        assert torch.equal(samples[:, k], member(image))


def test_each_member_gets_the_gradient_of_its_own_loss():
    net = ensemble()
    image, masks = torch.randn(2, 1, 4, 4), torch.randint(2, (2, 4, 4))
    terms = net(image, masks)
    terms.total.backward()
    totals = []
    for member in net.members:
        expected = [p.grad.clone() for p in member.parameters()]
        member.zero_grad()
        total = member(image, masks).total
        total.backward()
        totals.append(total.detach())
        for p, grad in zip(member.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, grad)
    torch.testing.assert_close(terms.reconstruction[0], torch.stack(totals).mean())


def test_more_samples_than_members_are_refused():
    with pytest.raises(ValueError, match=r"4 samples .* 3 members"):
        ensemble().sample(torch.randn(1, 1, 4, 4), 4)
    with pytest.raises(ValueError, match="members=0"):
        UNetEnsemble(2, 1, 2, members=0)
