"use strict";
// The rewards and advantages of nrt.objective (rewards.py, advantage.py), for one group of traces.
// tests/browser/test_page.py runs both on the same numbers. logp is K rows of T log-probabilities
// in nats; base is the T log-probabilities of the null trace.

const CAP_NATS = 20; // weights 1/p are capped at e^20
const EQUAL = 1e-5; // rewards closer than this share of the larger magnitude count as equal

const sum = (values) => values.reduce((total, value) => total + value, 0);
const mean = (values) => sum(values) / values.length;
const product = (a, b) => sum(a.map((value, i) => value * b[i]));

// For each scheme: raw token weights (if it has any), the reward R of a trace, and the token signal
// ∂R/∂log c_i.
const SCHEMES = [
  { id: "log-prob", label: "log-prob", formula: "Σ log c", reward: (logp) => sum(logp), signal: () => 1 },
  { id: "prob", label: "prob", formula: "Π c", reward: (logp) => Math.exp(sum(logp)), signal: (c, w, R) => R },
  { id: "arithmetic-mean", label: "arithmetic mean", formula: "(1/T) Σ c", reward: (logp) => mean(logp.map(Math.exp)), signal: (c, w, R, T) => c / T },
  { id: "geometric-mean", label: "geometric mean", formula: "(Π c)^(1/T)", reward: (logp) => Math.exp(mean(logp)), signal: (c, w, R, T) => R / T },
  {
    id: "inverse-prob", label: "weighted 1/p", formula: "Σ w c, w ∝ 1/c_base",
    weight: (base) => Math.exp(Math.min(-base, CAP_NATS)), reward: weightedSum, signal: (c, w) => w * c,
  },
  {
    id: "neg-log-prob", label: "weighted −log p", formula: "Σ w c, w ∝ −log c_base",
    weight: (base) => Math.max(-base, 0), reward: weightedSum, signal: (c, w) => w * c,
  },
  { id: "mean-log-prob", label: "mean log-prob", formula: "(1/T) Σ log c", reward: (logp) => mean(logp), signal: (c, w, R, T) => 1 / T },
];

function weightedSum(logp, weights) {
  return product(logp.map(Math.exp), weights);
}

/**
 * Returns the tokens' weights under a scheme; null for schemes without weights. `norm` is their
 * normalization: length (÷ T), sum (Σw = 1) or none.
 */
function weightsOf(scheme, base, norm) {
  if (!scheme.weight) return null;
  const raw = base.map(scheme.weight);
  let size = 1;
  if (norm === "length") size = raw.length;
  if (norm === "sum") size = sum(raw);
  return size > 0 ? raw.map((weight) => weight / size) : raw;
}

/** Returns {weights, rewards, baseReward, advantages} of a group under a scheme. */
function scoreGroup(scheme, logp, base, norm) {
  const weights = weightsOf(scheme, base, norm);
  const rewards = logp.map((row) => scheme.reward(row, weights));
  const baseReward = scheme.reward(base, weights);
  return { weights, rewards, baseReward, advantages: advantagesOf(rewards, baseReward) };
}

const close = (a, b) => Math.abs(a - b) <= EQUAL * Math.max(Math.abs(a), Math.abs(b));

/**
 * Returns A_k = (R'_k − mean)/std with R'_k = max(0, R_k − R_base) and the unbiased std; all 0 if
 * the R' are all equal (Eqs. 9 and 10).
 */
function advantagesOf(rewards, baseReward) {
  const kept = rewards.map((R) => (close(R, baseReward) ? baseReward : Math.max(R, baseReward)));
  if (close(Math.max(...kept), Math.min(...kept))) return kept.map(() => 0);
  const gains = kept.map((R) => R - baseReward);
  const size = Math.max(...gains.map(Math.abs)); // products of probabilities can be so small that their squares underflow
  const scaled = gains.map((gain) => gain / size);
  const centre = mean(scaled);
  const std = Math.sqrt(sum(scaled.map((gain) => (gain - centre) ** 2)) / (scaled.length - 1));
  return scaled.map((gain) => (gain - centre) / std);
}

/** Returns the indices of the values by falling value; equal ones keep their order. */
function ranking(values) {
  return values.map((_, i) => i).sort((a, b) => values[b] - values[a] || a - b);
}
