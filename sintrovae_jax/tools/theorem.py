"""The paper's theorem on a game with finitely many values: what is its equilibrium, and where does play end?

    python -m sintrovae_jax.tools.theorem [--data 0.4,0.3,0.2,0.1] [--figure FILE.png]

Data x are distributed as r [X]; encoder and decoder are tables, q(z|x) [X, Z] and d(x|z) [Z, X]; the prior is uniform.
All expectations are exact sums, in float64. The objectives are the paper's with β = s = 1, fakes from the prior alone:

    W(x) = E_q(z|x)[log d(x|z)] - KL(q(z|x) ‖ p(z)),  p_d(x) = E_p(z)[d(x|z)]
    L_q  = E_r[W] - E_{p_d}[exp(α W)] / α,            L_d    = E_r[W] + γ E_{p_d}[W]

See docs/theorem.md.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, special

from sintrovae_jax import cli, extras, files
from sintrovae_jax.errors import UserError
from sintrovae_jax.tools import text

DATA = (0.4, 0.3, 0.2, 0.1)
_ENCODER_RATE, _DECODER_RATE, _ENCODER_STEPS = 0.5, 0.1, 2


def marginal(d: np.ndarray) -> np.ndarray:
    """p_d [..., X] of a decoder d [..., Z, X] under the uniform prior."""
    return d.mean(axis=-2)


def elbo(q: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The ELBO W [..., X], in nats, of an encoder q [..., X, Z] and a decoder d [..., Z, X]."""
    return (q * _integrand(q, d)).sum(axis=-1)


def _integrand(q, d):
    """log d(x|z) - log q(z|x) + log p(z) [..., X, Z], whose mean under q is the ELBO."""
    return np.log(d).swapaxes(-1, -2) - np.log(q) - np.log(q.shape[-1])


def encoder_objective(w: np.ndarray, p_d: np.ndarray, r: np.ndarray, alpha: np.ndarray | float) -> np.ndarray:
    """L_q [...], which the encoder maximises. w: the ELBO [..., X]."""
    return w @ r - (p_d * np.exp(np.expand_dims(alpha, -1) * w)).sum(axis=-1) / alpha


def decoder_objective(w: np.ndarray, p_d: np.ndarray, r: np.ndarray, gamma: np.ndarray | float) -> np.ndarray:
    """L_d [...], which the decoder maximises. w: the ELBO [..., X]."""
    return w @ r + gamma * (p_d * w).sum(axis=-1)


def best_elbo(p_d: np.ndarray, r: np.ndarray, alpha: np.ndarray | float) -> np.ndarray:
    """W* [..., X] of the encoder that is the best response to a decoder. If `exact`, it is log p_d, the exact
    posterior's.
    """
    return np.minimum(np.log(p_d), np.log(r / p_d) / np.expand_dims(alpha, -1))


def exact(p_d: np.ndarray, r: np.ndarray, alpha: np.ndarray | float) -> np.ndarray:
    """Whether p_d(x)^(α+1) <= r(x) for all x, up to rounding: the condition of the theorem. Returns [...]."""
    return (p_d ** (1 + np.expand_dims(alpha, -1)) <= r * (1 + 1e-9)).all(axis=-1)


def encoder_gradient(q: np.ndarray, d: np.ndarray, r: np.ndarray, alpha: np.ndarray | float) -> np.ndarray:
    """The gradient of L_q with respect to the logits of q, [..., X, Z]."""
    integrand = _integrand(q, d)
    w = (q * integrand).sum(axis=-1)
    by_elbo = r - marginal(d) * np.exp(np.expand_dims(alpha, -1) * w)
    return by_elbo[..., None] * q * (integrand - w[..., None])


def decoder_gradient(q: np.ndarray, d: np.ndarray, r: np.ndarray, gamma: np.ndarray | float) -> np.ndarray:
    """The gradient of L_d with respect to the logits of d, [..., Z, X], including the path through p_d in E_{p_d}."""
    gamma, p_d, w = np.expand_dims(gamma, -1), marginal(d), elbo(q, d)
    by_log_d = (r + gamma * p_d)[..., None, :] * q.swapaxes(-1, -2) + (gamma * w)[..., None, :] * d / d.shape[-2]
    return by_log_d - d * by_log_d.sum(axis=-1, keepdims=True)


def play(
    r: np.ndarray, gamma: np.ndarray, alpha: np.ndarray, latents: int = 3, rounds: int = 20_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient ascent of both players in turn, from random tables. Returns q [N, X, Z] and d [N, Z, X].

    gamma, alpha: [N], one game for each pair.
    """
    generator, n = np.random.default_rng(seed), len(gamma)
    encoder, decoder = generator.normal(size=(n, len(r), latents)), generator.normal(size=(n, latents, len(r)))
    q, d = special.softmax(encoder, axis=-1), special.softmax(decoder, axis=-1)
    for _ in range(rounds):
        for _ in range(_ENCODER_STEPS):
            encoder += _ENCODER_RATE * encoder_gradient(q, d, r, alpha)
            q = special.softmax(encoder, axis=-1)
        decoder += _DECODER_RATE * decoder_gradient(q, d, r, gamma)
        d = special.softmax(decoder, axis=-1)
    return q, d


def divergence(p: np.ndarray, r: np.ndarray, gamma: float) -> float:
    """KL(r ‖ p) + γ H(p) in nats, p: [X]. The decoder of an equilibrium minimises it."""
    return float(special.rel_entr(r, p).sum() + gamma * special.entr(p).sum())


def optimum(r: np.ndarray, gamma: float, starts: int = 32, seed: int = 0) -> np.ndarray:
    """d*, the p [X] with the smallest `divergence`. That is not convex: takes the best of many minimisations."""

    def table(logits):
        return special.softmax(np.append(logits, 0.0))

    def gradient(logits):
        p = table(logits)
        return (p - r - gamma * p * (np.log(p) + special.entr(p).sum()))[:-1]

    def value(logits):
        return divergence(table(logits), r, gamma)

    generator = np.random.default_rng(seed)
    beginnings = [np.log(r[:-1] / r[-1]), *generator.normal(scale=2, size=(starts, len(r) - 1))]
    ends = [optimize.minimize(value, start, jac=gradient, method="BFGS").x for start in beginnings]
    best = min(ends, key=value)
    polished = optimize.root(gradient, best, tol=1e-14).x
    return table(polished if value(polished) <= value(best) else best)


def sweep(r: np.ndarray, gammas: Sequence[float], alphas: Sequence[float]) -> list[dict[str, Any]]:
    """A row for each pair of γ and α: d*, where play ends, its distance to d*, and whether `exact` holds."""
    pairs = [(gamma, alpha) for alpha in alphas for gamma in gammas]
    gamma, alpha = np.array(pairs, np.float64).T
    ends, best = marginal(play(r, gamma, alpha)[1]), {one: optimum(r, one) for one in gammas}
    return [
        {
            "alpha": a,
            "gamma": g,
            "optimum": best[g],
            "end": end,
            "distance": float(abs(end - best[g]).max()),
            "exact": bool(exact(best[g], r, a)),
        }
        for (g, a), end in zip(pairs, ends, strict=True)
    ]


def figure(path: Path, r: np.ndarray, rows: list[dict[str, Any]]) -> None:
    """A panel for each α: p(x) over γ for d* (lines) and for the end of play (dots); then a panel of the entropies."""
    from matplotlib.figure import Figure

    alphas = sorted({row["alpha"] for row in rows})
    drawing = Figure(figsize=(4.2 * (len(alphas) + 1), 3.8), layout="constrained")
    *panels, entropies = drawing.subplots(1, len(alphas) + 1)
    for number, (panel, alpha) in enumerate(zip(panels, alphas, strict=True)):
        some = [row for row in rows if row["alpha"] == alpha]
        gammas = [row["gamma"] for row in some]
        half = (gammas[1] - gammas[0]) / 2
        for x in range(len(r)):
            panel.plot(gammas, [row["optimum"][x] for row in some], color=f"C{x}", label=f"x = {x}")
            panel.plot(gammas, [row["end"][x] for row in some], "o", markersize=4, color=f"C{x}", clip_on=False)
        for row in some:
            if not row["exact"]:
                panel.axvspan(row["gamma"] - half, row["gamma"] + half, color="0.88", linewidth=0, zorder=0)
        panel.set(title=f"α = {alpha:g}", xlabel="γ", ylabel="p(x)", ylim=(0, None), xlim=(min(gammas), max(gammas)))
        if not number:
            entropies.plot(gammas, [special.entr(row["optimum"]).sum() for row in some], color="k", label="d*")
        values = [special.entr(row["end"]).sum() for row in some]
        entropies.plot(gammas, values, "os^v"[number % 4], markersize=4, label=f"play, α = {alpha:g}")
    panels[0].legend(loc="upper left", fontsize="small")
    entropies.axhline(special.entr(r).sum(), color="0.6", linestyle=":", label="data")
    entropies.set(title="entropy, nats", xlabel="γ")
    entropies.legend(fontsize="small")
    with files.storing(path), files.replacing(path) as temporary:
        drawing.savefig(temporary, format="png", dpi=110)


def _distribution(value: str) -> np.ndarray:
    try:
        r = np.array([float(part) for part in value.split(",")])
    except ValueError:
        raise UserError(f"--data {value}: numbers with commas between are wanted") from None
    if len(r) < 2 or not (r > 0).all() or abs(r.sum() - 1) > 1e-6:
        raise UserError(f"--data {value}: at least two positive probabilities that add up to 1 are wanted")
    return r / r.sum()


def main(argv: list[str]) -> None:
    """The command line. Raises `UserError`."""
    parser = cli.Parser("tools.theorem", "[--data P,P,…] [--figure FILE]", "Plays the paper's game on finite data.")
    parser.add_argument("--data", default=",".join(map(str, DATA)), help="the probabilities of the values of x")
    parser.add_argument("--figure", default="", help="where to draw it, a PNG file")
    args = parser.parse(argv[1:])
    r = _distribution(args.data)
    place = files.place(args.figure) if args.figure else None
    if place:
        extras.need_train()  # matplotlib
    rows = sweep(r, np.linspace(0, 1, 11).round(1).tolist(), (2.0, 8.0))
    print(text.aligned([("α", "γ", "d*", "play ends at", "distance", "condition"), *map(_cells, rows)]))
    if place:
        figure(place, r, rows)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    optimum, end = (" ".join(f"{p:.3f}" for p in row[name]) for name in ("optimum", "end"))
    holds = "holds" if row["exact"] else "violated"
    return f"{row['alpha']:g}", f"{row['gamma']:g}", optimum, end, f"{row['distance']:.1e}", holds


if __name__ == "__main__":
    cli.start(main)
