"""The papers' algorithms in plain float64 numpy, written from the formulas, independent of zoft.

θ is a list of arrays; ``loss(theta)`` a function; ``noise(step, draw)`` a list of arrays u.
"""

from __future__ import annotations

import numpy as np


def mezo(theta, loss, noise, steps, lr, epsilon, n=1, weight_decay=0.0):
    """MeZO, Algorithm 1 (arXiv 2305.17333); n > 1 is n-SPSA."""
    for t in range(steps):
        gradient = [np.zeros_like(x) for x in theta]
        for k in range(n):
            z = noise(t, k)
            plus = loss([x + epsilon * d for x, d in zip(theta, z)])
            minus = loss([x - epsilon * d for x, d in zip(theta, z)])
            c = (plus - minus) / (2 * epsilon)
            gradient = [g + c * d / n for g, d in zip(gradient, z)]
        theta = [x - lr * (g + weight_decay * x) for x, g in zip(theta, gradient)]
    return theta


def hizoo(theta, loss, noise, steps, lr, epsilon, alpha, n=1):
    """HiZOO, Algorithm 1 (arXiv 2402.15173), with the H that drew z; n > 1 is HiZOO-multi."""
    hessian = [np.ones_like(x) for x in theta]
    for t in range(steps):
        middle = loss(theta)
        gradient = [np.zeros_like(x) for x in theta]
        estimate = [np.zeros_like(x) for x in theta]
        for k in range(n):
            u = noise(t, k)
            z = [d / np.sqrt(h) for d, h in zip(u, hessian)]
            plus = loss([x + epsilon * d for x, d in zip(theta, z)])
            minus = loss([x - epsilon * d for x, d in zip(theta, z)])
            c = (plus - minus) / (2 * epsilon)
            delta = plus + minus - 2 * middle
            gradient = [g + c * d / n for g, d in zip(gradient, z)]
            estimate = [e + abs(delta) / (2 * epsilon**2) * h * d**2 / n for e, h, d in zip(estimate, hessian, u)]
        theta = [x - lr * g for x, g in zip(theta, gradient)]
        hessian = [(1 - alpha) * h + alpha * e for h, e in zip(hessian, estimate)]
    return theta, hessian


def pertnn(weights, features, output):
    """One block's network: Linear(5, h), tanh, Linear(h, 1), output function (arXiv 2510.00419)."""
    w1, b1, w2, b2 = weights
    y = float((w2 @ np.tanh(w1 @ features + b1) + b2)[0])
    return {"abs": abs(y), "exp": np.exp(y), "bounded": np.exp(1.2 * np.tanh(y))}[output]


def zo_finetuner(theta, loss, noise, steps, lr, epsilon, networks, sizes, output):
    """ZO Fine-tuner with raw features: fine-tuning with given PertNNs; returns θ and every step's σ."""
    sigma, last, history = [1.0] * len(theta), (0.0, 0.0), []
    for t in range(steps):
        features = [np.array([x.mean(), x.var(ddof=1) if x.size > 1 else 0.0, *last, s]) for x, s in zip(theta, sigma)]
        sigma = [pertnn(w, f, output) for w, f in zip(networks, features)]
        nu = np.sqrt(sum(sizes) / sum(w * s**2 for w, s in zip(sizes, sigma)))
        z = [nu * s * d for s, d in zip(sigma, noise(t, 0))]
        plus = loss([x + epsilon * d for x, d in zip(theta, z)])
        minus = loss([x - epsilon * d for x, d in zip(theta, z)])
        c = (plus - minus) / (2 * epsilon)
        theta = [x - lr * c * d for x, d in zip(theta, z)]
        last = (plus, minus)
        history.append(sigma)
    return theta, history
