"""The papers' algorithms in plain float64 numpy, written from the formulas, independent of zoft.

θ is a list of arrays; ``loss(theta)`` a function; ``noise(step, draw)`` a list of arrays u.
"""

from __future__ import annotations

import numpy as np


def central(theta, loss, z, epsilon):
    """c = (L+ − L−) / 2ε."""
    plus = loss([x + epsilon * d for x, d in zip(theta, z)])
    minus = loss([x - epsilon * d for x, d in zip(theta, z)])
    return (plus - minus) / (2 * epsilon)


def one_sided(theta, loss, z, epsilon):
    """c = (L+ − L) / ε."""
    return (loss([x + epsilon * d for x, d in zip(theta, z)]) - loss(theta)) / epsilon


def mezo(theta, loss, noise, steps, lr, epsilon, n=1, weight_decay=0.0, estimator=central):
    """MeZO, Algorithm 1 (arXiv 2305.17333); n > 1 is n-SPSA; ``epsilon`` may be a function of the step."""
    for t in range(steps):
        gradient = [np.zeros_like(x) for x in theta]
        for k in range(n):
            z = noise(t, k)
            c = estimator(theta, loss, z, epsilon(t) if callable(epsilon) else epsilon)
            gradient = [g + c * d / n for g, d in zip(gradient, z)]
        theta = [x - lr * (g + weight_decay * x) for x, g in zip(theta, gradient)]
    return theta


def zo_sgd_sign(theta, loss, noise, steps, lr, epsilon, n=1, elementwise=False):
    """ZO-SGD-Sign: sign(c)·z (the code of arXiv 2402.11592), or the signs of the mean of c·z (signSGD)."""
    for t in range(steps):
        drawn = [(z := noise(t, k), central(theta, loss, z, epsilon)) for k in range(n)]
        if elementwise:
            change = [np.sign(sum(c * z[i] for z, c in drawn) / n) for i in range(len(theta))]
        else:
            change = [sum(np.sign(c) * z[i] for z, c in drawn) / n for i in range(len(theta))]
        theta = [x - lr * d for x, d in zip(theta, change)]
    return theta


def zo_sgd_mmt(theta, loss, noise, steps, lr, epsilon, beta, n=1, decay=0.0, estimator=central):
    """ZO-SGD with momentum (arXiv 2402.11592); the decay is decoupled from the momentum."""
    momentum = [np.zeros_like(x) for x in theta]
    for t in range(steps):
        gradient = [np.zeros_like(x) for x in theta]
        for k in range(n):
            z = noise(t, k)
            c = estimator(theta, loss, z, epsilon)
            gradient = [g + c * d / n for g, d in zip(gradient, z)]
        momentum = [beta * m + g for m, g in zip(momentum, gradient)]
        theta = [x - lr * (m + decay * x) for x, m in zip(theta, momentum)]
    return theta


def zo_sgd_cons(theta, loss, noise, steps, lr, epsilon):
    """Conservative ZO-SGD (arXiv 2402.11592): the best of θ, θ − ηcz, θ + ηcz; also the choices."""
    choices = []
    for t in range(steps):
        z = noise(t, 0)
        c = central(theta, loss, z, epsilon)
        candidates = {s: [x - s * lr * c * d for x, d in zip(theta, z)] for s in (1, 0, -1)}
        choices.append(min(candidates, key=lambda s: loss(candidates[s])))
        theta = candidates[choices[-1]]
    return theta, choices


def zo_adam(theta, loss, directions, steps, lr, epsilon, beta1=0.9, beta2=0.999, tiny=1e-8, decay=0.0):
    """Adam (arXiv 1412.6980, Algorithm 1) on c·z; ``directions(t, theta, loss)`` gives z. Decay as in AdamW."""
    first, second = [np.zeros_like(x) for x in theta], [np.zeros_like(x) for x in theta]
    for t in range(1, steps + 1):
        z = directions(t - 1, theta)
        c = central(theta, loss, z, epsilon)
        first = [beta1 * m + (1 - beta1) * c * d for m, d in zip(first, z)]
        second = [beta2 * v + (1 - beta2) * (c * d) ** 2 for v, d in zip(second, z)]
        unbiased = [(m / (1 - beta1**t), v / (1 - beta2**t)) for m, v in zip(first, second)]
        theta = [x - lr * (m / (np.sqrt(v) + tiny) + decay * x) for x, (m, v) in zip(theta, unbiased)]
    return theta


def zo_adamu(theta, loss, noises, steps, lr, epsilon, warmup, end, last=(0.5, 0.9, 0.01), n=1, signed=False):
    """ZO-AdaMU, Algorithm 1 (arXiv 2312.15184); ``noises(t, k)`` gives two independent noises."""
    momentum = [np.zeros_like(x) for x in theta]
    for t in range(steps):
        x = 0.0 if t < warmup else min((t - warmup) / (end - warmup), 1.0)
        alpha, beta1, beta2 = (value + (1 - value) * (0.5 + 0.5 * np.cos(np.pi * x)) for value in last)
        total, square, mean = ([np.zeros_like(p) for p in theta] for _ in range(3))
        for k in range(n):
            zero = [np.sqrt(alpha) * d for d in noises(t, k)[0]]
            around = [m + np.sqrt(1 - alpha) * d for m, d in zip(momentum, noises(t, k)[1])]
            z = [beta1 * a + (1 - beta1) * b for a, b in zip(zero, around)]
            c = central(theta, loss, z, epsilon)
            total = [g + c * d / n for g, d in zip(total, z)]
            square = [v + (beta2 * a**2 + (1 - beta2) * b**2) / n for v, a, b in zip(square, zero, around)]
            mean = [m + (np.sign(c) if signed else 1.0) * d / n for m, d in zip(mean, z)]
        theta = [p - lr * g / np.sqrt(v + 1e-8) for p, g, v in zip(theta, total, square)]
        momentum = mean
    return theta


def forward_grad(theta, gradient, noise, steps, lr):
    """Forward gradient (arXiv 2202.08587): ⟨∇L, u⟩·u with the gradient in closed form."""
    for t in range(steps):
        u = noise(t, 0)
        slope = sum((g * d).sum() for g, d in zip(gradient(theta), u))
        theta = [x - lr * slope * d for x, d in zip(theta, u)]
    return theta


def fzoo(theta, loss, signs, steps, lr, epsilon, n, learned=None):
    """FZOO, Algorithm 1 (arXiv 2506.09034); a :class:`LearnedScale` scales the signs."""
    for t in range(steps):
        scales = [1.0] * len(theta) if learned is None else learned(theta)
        directions = [[s * d for s, d in zip(scales, signs(t, k))] for k in range(n)]
        zero = loss(theta)
        losses = [loss([x + epsilon * d for x, d in zip(theta, z)]) for z in directions]
        gradient = [np.zeros_like(x) for x in theta]
        for value, z in zip(losses, directions):
            gradient = [g + (value - zero) * d / (epsilon * n) for g, d in zip(gradient, z)]
        theta = [x - lr * g / np.std(losses, ddof=1) for x, g in zip(theta, gradient)]
        if learned is not None:
            # The side that is not measured, to first order.
            learned.last = (np.mean(losses), 2 * zero - np.mean(losses))
    return theta


def lozo(theta, loss, factors, noise, steps, lr, epsilon, rank, interval, beta=None, n=1):
    """LOZO, Algorithm 1 (arXiv 2410.07698): ``factors(i, t, T, k)`` gives U of step t and V of step T of matrix i.

    With ``beta``, the estimate goes through momentum as in :func:`zo_sgd_mmt`. With n > 1 it is the mean over n
    pairs of U and V.
    """
    momentum = [np.zeros_like(x) for x in theta]
    for t in range(steps):
        gradient = [np.zeros_like(x) for x in theta]
        for k in range(n):
            z, divisor = [], []
            for i, x in enumerate(theta):
                if x.ndim == 2:
                    u, v = factors(i, t, t // interval * interval, k)
                    assert (u.shape, v.shape) == ((x.shape[0], rank), (x.shape[1], rank))
                    z.append(u @ v.T)
                    divisor.append(rank)
                else:
                    z.append(noise(t, k)[i])
                    divisor.append(1)
            c = central(theta, loss, z, epsilon)
            gradient = [g + c * d / r / n for g, d, r in zip(gradient, z, divisor)]
        momentum = gradient if beta is None else [beta * m + g for m, g in zip(momentum, gradient)]
        theta = [x - lr * g for x, g in zip(theta, momentum)]
    return theta


def hizoo(theta, loss, noise, steps, lr, epsilon, alpha, n=1, subtract=False, decay=0.0, learned=None):
    """HiZOO, Algorithm 1 (arXiv 2402.15173), with the H that drew z; n > 1 is HiZOO-multi.

    ``alpha`` and ``epsilon`` may be functions of the step; ``subtract`` keeps the term −Σ⁻¹ of eq. (5). A
    :class:`LearnedScale` scales z, and H is then the Hessian in the coordinates that it scales.
    """
    hessian = [np.ones_like(x) for x in theta]
    for t in range(steps):
        scales = [1.0] * len(theta) if learned is None else learned(theta)
        rate, eps = (value(t) if callable(value) else value for value in (alpha, epsilon))
        middle, sides = loss(theta), []
        gradient = [np.zeros_like(x) for x in theta]
        estimate = [np.zeros_like(x) for x in theta]
        for k in range(n):
            u = noise(t, k)
            z = [s * d / np.sqrt(h) for s, d, h in zip(scales, u, hessian)]
            plus = loss([x + eps * d for x, d in zip(theta, z)])
            minus = loss([x - eps * d for x, d in zip(theta, z)])
            c = (plus - minus) / (2 * eps)
            delta = plus + minus - 2 * middle
            gradient = [g + c * d / n for g, d in zip(gradient, z)]
            square = [h * d**2 - (h if subtract else 0) for h, d in zip(hessian, u)]
            estimate = [e + abs(delta / (2 * eps**2) * q) / n for e, q in zip(estimate, square)]
            sides.append((plus, minus))
        theta = [x - lr * (g + decay * x) for x, g in zip(theta, gradient)]
        hessian = [(1 - rate) * h + rate * e for h, e in zip(hessian, estimate)]
        if learned is not None:
            learned.last = tuple(np.mean(sides, axis=0))
    return theta, hessian


def hizoo_l(theta, loss, noise, steps, lr, epsilon, alpha, n=1):
    """HiZOO-L: matrices keep R and C with H = R·Cᵀ / mean(R) (arXiv 2402.15173; 1804.04235, Algorithm 2).

    n > 1 averages c·z and the estimate of H over n directions, as HiZOO-multi does.
    """
    rows, columns = ([np.ones(x.shape[axis]) if x.ndim == 2 else None for x in theta] for axis in (0, 1))
    vectors = [np.ones_like(x) for x in theta]
    for t in range(steps):
        hessian = [
            vectors[i] if x.ndim == 1 else np.outer(rows[i], columns[i]) / rows[i].mean() for i, x in enumerate(theta)
        ]
        middle = loss(theta)
        gradient, estimates = [np.zeros_like(x) for x in theta], [np.zeros_like(x) for x in theta]
        for k in range(n):
            u = noise(t, k)
            z = [d / np.sqrt(h) for d, h in zip(u, hessian)]
            plus = loss([x + epsilon * d for x, d in zip(theta, z)])
            minus = loss([x - epsilon * d for x, d in zip(theta, z)])
            gradient = [g + (plus - minus) / (2 * epsilon) * d / n for g, d in zip(gradient, z)]
            second = abs(plus + minus - 2 * middle) / (2 * epsilon**2)
            estimates = [e + second * h * d**2 / n for e, h, d in zip(estimates, hessian, u)]
        theta = [x - lr * g for x, g in zip(theta, gradient)]
        for i, estimate in enumerate(estimates):
            if estimate.ndim == 1:
                vectors[i] = (1 - alpha) * vectors[i] + alpha * estimate
            else:
                rows[i] = (1 - alpha) * rows[i] + alpha * estimate.mean(1)
                columns[i] = (1 - alpha) * columns[i] + alpha * estimate.mean(0)
    return theta, rows, columns


def pertnn(weights, features, output):
    """One block's network: Linear(5, h), tanh, Linear(h, 1), output function (arXiv 2510.00419)."""
    w1, b1, w2, b2 = weights
    y = float((w2 @ np.tanh(w1 @ features + b1) + b2)[0])
    return {"abs": abs(y), "exp": np.exp(y), "bounded": np.exp(1.2 * np.tanh(y))}[output]


class LearnedScale:
    """ν·σ of every block for raw features, from given PertNNs; ``last`` are the last losses."""

    def __init__(self, networks, sizes, output):
        self.networks, self.sizes, self.output = networks, sizes, output
        self.sigma, self.last = [1.0] * len(networks), (0.0, 0.0)

    def __call__(self, theta):
        features = [
            np.array([x.mean(), x.var(ddof=1) if x.size > 1 else 0.0, *self.last, s]) for x, s in zip(theta, self.sigma)
        ]
        self.sigma = [pertnn(w, f, self.output) for w, f in zip(self.networks, features)]
        nu = np.sqrt(sum(self.sizes) / sum(w * s**2 for w, s in zip(self.sizes, self.sigma)))
        return [nu * s for s in self.sigma]


def zo_finetuner(theta, loss, noise, steps, lr, epsilon, learned):
    """ZO Fine-tuner (arXiv 2510.00419): fine-tuning with a :class:`LearnedScale`."""
    for t in range(steps):
        z = [s * d for s, d in zip(learned(theta), noise(t, 0))]
        plus = loss([x + epsilon * d for x, d in zip(theta, z)])
        minus = loss([x - epsilon * d for x, d in zip(theta, z)])
        c = (plus - minus) / (2 * epsilon)
        theta = [x - lr * c * d for x, d in zip(theta, z)]
        learned.last = (plus, minus)
    return theta


class LearnedDirection:
    """z = ν·σ·u of :func:`zo_finetuner` along any trajectory: ``(t, theta, loss)`` -> z."""

    def __init__(self, learned, noise, epsilon):
        self.learned, self.noise, self.epsilon = learned, noise, epsilon

    def __call__(self, t, theta, loss):
        z = [s * d for s, d in zip(self.learned(theta), self.noise(t, 0))]
        self.learned.last = tuple(loss([x + sign * self.epsilon * d for x, d in zip(theta, z)]) for sign in (1, -1))
        return z


class HessianDirection:
    """z = H^(−1/2)·u of :func:`hizoo` along any trajectory: ``(t, theta, loss)`` -> z."""

    def __init__(self, theta, noise, epsilon, alpha):
        self.hessian, self.noise, self.epsilon, self.alpha = [np.ones_like(x) for x in theta], noise, epsilon, alpha

    def __call__(self, t, theta, loss):
        u = self.noise(t, 0)
        z = [d / np.sqrt(h) for d, h in zip(u, self.hessian)]
        plus, minus = (loss([x + sign * self.epsilon * d for x, d in zip(theta, z)]) for sign in (1, -1))
        second = abs(plus + minus - 2 * loss(theta)) / (2 * self.epsilon**2)
        self.hessian = [(1 - self.alpha) * h + self.alpha * second * h * d**2 for h, d in zip(self.hessian, u)]
        return z
