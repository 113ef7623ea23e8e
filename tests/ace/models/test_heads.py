import pytest
import torch

from ace.models.heads import Composer, Decomposer, GlobalHead, LocalHead, LogitScale
from ace.models.params import GlobalHeadParams, LocalHeadParams, LogitParams

SCALES = [(1, 2), (2, 1), (2, 2)]


def numbered_tokens(rows: int, cols: int, dim: int) -> torch.Tensor:
    """Every number of the map is another one, so that a wrong order shows."""
    return torch.arange(rows * cols * dim, dtype=torch.float32).reshape(1, rows, cols, dim)


@pytest.mark.parametrize(("k", "l"), SCALES)
def test_composition_as_the_mean_is_the_mean_of_each_block(k: int, l: int) -> None:
    tokens = numbered_tokens(4, 4, 3)
    composed = Composer(3, k, l, "mean", 8)(tokens)
    for i in range(4 // k):
        for j in range(4 // l):
            block = tokens[0, i * k : (i + 1) * k, j * l : (j + 1) * l].reshape(k * l, 3)
            torch.testing.assert_close(composed[0, i, j], block.mean(0))


@pytest.mark.parametrize(("k", "l"), SCALES)
def test_composer_concatenates_in_row_col_channel_order(k: int, l: int) -> None:
    composer = Composer(3, k, l, "linear", 8)
    tokens = numbered_tokens(4, 4, 3)
    composed = composer(tokens)
    for i in range(4 // k):
        for j in range(4 // l):
            parts = [tokens[0, i * k + a, j * l + b] for a in range(k) for b in range(l)]
            torch.testing.assert_close(composed[0, i, j], composer.map(torch.cat(parts)))


@pytest.mark.parametrize(("k", "l"), SCALES)
def test_decomposer_lays_parts_out_in_row_col_channel_order(k: int, l: int) -> None:
    decomposer = Decomposer(3, k, l, "linear", 8)
    tokens = numbered_tokens(4, 4, 3)
    decomposed = decomposer(tokens)
    assert decomposed.shape == (1, 4 * k, 4 * l, 3)
    for i in range(4):
        for j in range(4):
            parts = decomposer.map(tokens[0, i, j]).split(3)
            for a in range(k):
                for b in range(l):
                    torch.testing.assert_close(decomposed[0, i * k + a, j * l + b], parts[a * l + b])


@pytest.mark.parametrize("form", ["mlp", "linear"])
def test_a_token_of_the_local_head_depends_on_its_own_token_only(form: str) -> None:
    head = LocalHead(6, LocalHeadParams(form=form, hidden_dim=8))
    tokens = torch.randn(2, 3, 4, 6)
    changed = tokens.clone()
    changed[0, 1, 2] += 1.0
    difference = (head(changed) - head(tokens)).norm(dim=-1)
    assert difference.nonzero().tolist() == [[0, 1, 2]]
    torch.testing.assert_close(head(tokens).norm(dim=-1), torch.ones(2, 3, 4))


def test_global_logits_are_cosines_whatever_the_length_of_a_prototype() -> None:
    head = GlobalHead(6, GlobalHeadParams(hidden_dim=8, bottleneck_dim=4, out_dim=10))
    pooled = torch.randn(5, 6)
    logits = head(pooled)
    with torch.no_grad():
        head.last_layer.weight.mul_(torch.linspace(0.5, 20.0, 10)[:, None])
    torch.testing.assert_close(head(pooled), logits)
    assert logits.abs().max() <= 1.0 + 1e-6


@pytest.mark.parametrize("learnable", [True, False])
def test_the_logit_scale_starts_as_configured_and_learns_only_if_configured(learnable: bool) -> None:
    logits = LogitScale(LogitParams(scale=10.0, bias=-5.0, learnable=learnable))
    scale, bias = logits()
    assert (scale.item(), bias.item()) == pytest.approx((10.0, -5.0))
    assert {p.requires_grad for p in logits.parameters()} == {learnable}
