// Numbers from the model's outputs: pure functions on flat arrays.

/** Natural log-probabilities from logits. */
export function logProbs(logits) {
  let highest = -Infinity;
  for (const value of logits) if (value > highest) highest = value;
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - highest);
  const shift = highest + Math.log(sum);
  return Float64Array.from(logits, (value) => value - shift);
}

/** The indices of the k largest values, largest first. */
export function topK(values, k) {
  const best = [];
  for (let i = 0; i < values.length; i++) {
    if (best.length === k && values[i] <= values[best[k - 1]]) continue;
    let place = best.length;
    while (place > 0 && values[best[place - 1]] < values[i]) place--;
    best.splice(place, 0, i);
    if (best.length > k) best.pop();
  }
  return best;
}

/** Δ at each point of the stream: the length of the difference over all tokens and coordinates, as `delta_norm`. */
export function deltaNorm(clean, edited, points) {
  return lengths(clean, points, (i) => clean[i] - edited[i]);
}

/** The length of the stream at each point. */
export function streamNorm(stream, points) {
  return lengths(stream, points, (i) => stream[i]);
}

function lengths(values, points, at) {
  const size = values.length / points;
  return Array.from({ length: points }, (_, point) => {
    let sum = 0;
    for (let i = point * size; i < (point + 1) * size; i++) sum += at(i) ** 2;
    return Math.sqrt(sum);
  });
}

export function norm(values) {
  let sum = 0;
  for (const value of values) sum += value * value;
  return Math.sqrt(sum);
}

/** What a head's query at one position looks at: the shares, one for each token up to it. */
export function looks(run, shape, block, head, position) {
  const { length, patterns } = run;
  const start = ((block * shape.heads + head) * length + position) * length;
  return Array.from(patterns.subarray(start, start + position + 1));
}
