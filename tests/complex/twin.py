"""The complex parts by their definitions, in loops over complex128 numbers.

    rms        z / √(mean |z|² + ε) · γ
    layer      ((|z| − mean) / deviation · γ + β) · z/|z|
    modReLU    ReLU(|z| + b) · z/|z|
    swiglu     W₂ (u ⊙ m·σ(m + b)),  m = √(|W₁ x|² + ε),  u = W₃ x
    rotary     feature j of d turns by position · θ^(−j/d)
    scores     s = ⟨q, k⟩ / √d;  real: softmax(Re s);  magnitude: softmax(|s|);  phase: softmax(|s|) · s/|s|;
               split: λ softmax(Re s) + (1 − λ) softmax(Im s)

All commute with a turn of every number by one angle. Source: the complex-block document, with its gate σ(|z|), which
cannot close, replaced; modReLU: Arjovsky et al. 2015 (arXiv 1511.06464).
"""

from __future__ import annotations

import cmath
import math


def linear(x, weight):
    """W x for x [d_in] and W [d_out][d_in], complex."""
    return [sum(w * value for w, value in zip(row, x)) for row in weight]


def rms_norm(z, gain, eps):
    """z divided by the root mean square of its magnitudes, times a real gain."""
    rms = math.sqrt(sum(abs(v) ** 2 for v in z) / len(z) + eps)
    return [v / rms * g for v, g in zip(z, gain)]


def layer_norm(z, gain, bias, eps):
    """Centre and scale the magnitudes; one that is below zero then turns its number by π."""
    sizes = [math.sqrt(abs(v) ** 2 + eps) for v in z]
    mean = sum(sizes) / len(sizes)
    deviation = math.sqrt(sum((s - mean) ** 2 for s in sizes) / len(sizes) + eps)
    return [v / s * ((s - mean) / deviation * g + b) for v, s, g, b in zip(z, sizes, gain, bias)]


def mod_relu(z, bias):
    """Shift the magnitude by b, cut at zero, and keep the phase."""
    return [max(abs(v) + b, 0.0) * v / abs(v) if v else 0j for v, b in zip(z, bias)]


def swiglu(x, w1, w2, w3, gate_bias, eps):
    """A real gate from magnitudes on a complex value."""
    sizes = [math.sqrt(abs(g) ** 2 + eps) for g in linear(x, w1)]
    gates = [m / (1 + math.exp(-(m + b))) for m, b in zip(sizes, gate_bias)]
    return linear([u * gate for u, gate in zip(linear(x, w3), gates)], w2)


def rotate(z, position, theta):
    """Complex rotary embedding: feature j of d turns by position · theta^(−j/d)."""
    return [v * cmath.exp(1j * position * theta ** (-j / len(z))) for j, v in enumerate(z)]


def attention(q, k, v, score, causal, share=0.5):
    """One head: q [T][d], k and v [S][d]; the definition of each score, position by position."""
    out = []
    for t, query in enumerate(q):
        last = t + 1 + len(k) - len(q) if causal else len(k)
        s = [sum(a * b.conjugate() for a, b in zip(query, key)) / math.sqrt(len(query)) for key in k[:last]]
        if score == "real":
            weights = softmax([value.real for value in s])
        elif score == "magnitude":
            weights = softmax([abs(value) for value in s])
        elif score == "phase":
            weights = [w * value / abs(value) for w, value in zip(softmax([abs(value) for value in s]), s)]
        else:
            pairs = zip(softmax([value.real for value in s]), softmax([value.imag for value in s]))
            weights = [share * real + (1 - share) * imaginary for real, imaginary in pairs]
        out.append([sum(w * value[j] for w, value in zip(weights, v)) for j in range(len(v[0]))])
    return out


def softmax(scores):
    """Weights that sum to one; the highest score is subtracted so that no power overflows."""
    top = max(scores)
    powers = [math.exp(s - top) for s in scores]
    return [p / sum(powers) for p in powers]
