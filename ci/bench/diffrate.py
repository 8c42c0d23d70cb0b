"""DiffRate's hot path against the straightforward forms, as ratios measured in one run."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import bench, models, vit
from helpers.notebooks import load

D = load("diffrate")
SCHEDULE = [(65, 65), (45, 30), (28, 26), (24, 22), (20, 18), (18, 3)]


def loop_probability(logits: Tensor, candidates: Tensor, num_tokens: int) -> Tensor:
    """Keep probability by one slice addition for every candidate."""
    rho, total = logits.softmax(-1), torch.zeros(num_tokens)
    for k, count in enumerate(candidates.int().tolist()):
        total = total + F.pad(rho[k].expand(count + 1), (0, num_tokens - count - 1))
    return total


def keep_probabilities() -> None:
    logits, c = torch.randn(196, requires_grad=True), D.candidate_counts(196, 1, 196)
    contenders = {"loop": loop_probability, "one comparison": D.keep_probability}
    found = [fn(logits, c, 197) for fn in contenders.values()]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    runs = {n: lambda fn=fn: fn(logits, c, 197).sum().backward() for n, fn in contenders.items()}
    bench.print_table(bench.compare(runs, baseline="loop"), "keep probability, 196 candidates")


def gate_opening() -> None:
    gates = [(torch.randn(196), torch.randn(196)) for _ in range(12)]
    c = D.candidate_counts(196, 1, 196)

    def one_by_one():
        for logits in (logits for pair in gates for logits in pair):
            int(D.kept_tokens(logits, c)), D.keep_probability(logits, c, 197)

    runs = {"gate by gate": one_by_one, "stacked": lambda: D.open_gates(gates, 197, 1)}
    bench.print_table(bench.compare(runs, baseline="gate by gate"), "opening 24 gates")


def search_step() -> None:
    images, labels = torch.rand(32, 3, 32, 32), torch.arange(32) % 10
    peaks = D.peaked_gates(SCHEDULE[1:], 65, sharpness=1.0)

    def contender(frozen: bool, prefix: bool):
        model = models.vit().eval()
        gated = D.GatedViT(model)
        gated.logits.data = torch.stack([torch.stack(pair) for pair in peaks]).detach()
        model.requires_grad_(not frozen)
        # a first gate of two candidates takes block 0 out of the prefix without a graph
        start = gated.fixed if prefix else torch.tensor([30.0, -30.0])

        def step():
            gates = [(start, start), *gated.gates()[1:]]
            logits, kept, _ = D.masked_forward(model, images, gates)
            cost = D.relative_cost(kept, gated.shape)
            (F.cross_entropy(logits, labels) + 1000 * (cost - 0.5) ** 2).backward()
            gated.zero_grad()

        return step

    runs = {
        "weights with gradient, no prefix": contender(frozen=False, prefix=False),
        "weights with gradient, prefix": contender(frozen=False, prefix=True),
        "frozen, prefix": contender(frozen=True, prefix=True),
    }
    rows = bench.compare(runs, baseline="weights with gradient, no prefix")
    bench.print_table(rows, "search step, 65 tokens, width 64, batch 32")


@torch.no_grad()
def class_row() -> None:
    query, key, value = torch.randn(3, 8, 6, 197, 64).unbind(0)
    bias, scale = torch.rand(8, 1, 1, 197), 64**-0.5

    def explicit():
        attn = (query @ key.mT * scale + bias).softmax(-1)
        return attn @ value, attn[:, :, 0].mean(1)

    def fused():  # what helpers.vit.attend does between its two projections
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return heads, (query[:, :, :1] @ key.mT * scale + bias).softmax(-1).mean(1).squeeze(1)

    for ours, theirs in zip(fused(), explicit(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    rows = bench.compare({"explicit map": explicit, "fused + row": fused}, baseline="explicit map")
    bench.print_table(rows, "attention and class row, 197 tokens, 6 heads of 64, batch 8")


@torch.no_grad()
def forward() -> None:
    model, images = models.vit().eval(), torch.rand(100, 3, 32, 32)
    runs = {"full": partial(model, images)}
    for cost in (0.7, 0.5, 0.35):
        path, schedule = D.baselines(vit.read_shape(model), 6, cost)["uniform prune+merge"]
        runs[f"compressed, cost {cost}"] = partial(path, model, images, schedule)
    bench.print_table(bench.compare(runs, baseline="full"), "forward pass, 100 images, 65 tokens")


def main() -> None:
    for part in (keep_probabilities, gate_opening, search_step, class_row, forward):
        part()


if __name__ == "__main__":
    main()
