// Two small charts on canvas. Each returns what it shows in words, for who cannot see it.

const STYLE = getComputedStyle(document.documentElement);
const colour = (name) => STYLE.getPropertyValue(`--${name}`).trim();

function begin(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = colour("dim");
  return { context, width, height };
}

// Every candidate's predicted value as a bar, its spread as a line, the chosen one bright.
export function drawCandidates(canvas, decision) {
  const { context, width, height } = begin(canvas);
  const candidates = decision?.candidates ?? [];
  const valued = candidates.filter((each) => each.value !== null);
  if (!valued.length) {
    const words = candidates.length ? "one chunk, no value asked for" : "no decision yet";
    context.fillText(words, 8, height / 2);
    return words;
  }
  const top = 16, base = height - 16, step = Math.min(64, (width - 8) / candidates.length);
  candidates.forEach((each, index) => {
    const x = 4 + index * step, chosen = index === decision.chosen;
    if (each.value === null) {
      context.fillStyle = colour("dim");
      context.fillText(each.finished ? "–" : "late", x + 2, base - 4);
      return;
    }
    const y = base - each.value * (base - top);
    context.fillStyle = colour(chosen ? "good" : "line");
    context.fillRect(x + 2, y, step - 4, base - y);
    if (each.spread !== null) {
      const reach = each.spread * (base - top);
      context.fillStyle = colour("text");
      context.fillRect(x + step / 2 - 1, y - reach, 2, 2 * reach);
    }
    context.fillStyle = colour(chosen ? "text" : "dim");
    context.fillText(each.value.toFixed(2), x + 3, Math.max(11, y - 4));
    context.fillText(`${index + 1}${chosen ? " ✓" : ""}`, x + 3, height - 3);
  });
  const best = candidates[decision.chosen];
  return `candidate ${decision.chosen + 1} of ${candidates.length} chosen, value ${best.value?.toFixed(2)}; ${decision.reason}`;
}

// The predicted value, 0 to 1, over the seconds of the run.
export function drawValues(canvas, values) {
  const { context, width, height } = begin(canvas);
  if (!values?.length) {
    context.fillText("no value predicted in this run", 8, height / 2);
    return "no value predicted in this run";
  }
  const left = 28, bottom = height - 16, last = Math.max(values.at(-1)[0], 1);
  const x = (t) => left + (t / last) * (width - left - 8);
  const y = (v) => bottom - v * (bottom - 8);
  for (const mark of [0, 0.5, 1]) {
    context.fillText(mark.toFixed(1), 4, y(mark) + 4);
    context.fillStyle = colour("line");
    context.fillRect(left, y(mark), width - left - 8, 1);
    context.fillStyle = colour("dim");
  }
  context.fillText(`${last.toFixed(0)} s`, width - 34, height - 3);
  context.strokeStyle = context.fillStyle = colour("accent");
  context.lineWidth = 2;
  context.beginPath();
  values.forEach(([t, v], index) => (index ? context.lineTo(x(t), y(v)) : context.moveTo(x(t), y(v))));
  context.stroke();
  for (const [t, v] of values) context.fillRect(x(t) - 2, y(v) - 2, 4, 4);
  return `value ${values.at(-1)[1].toFixed(2)} after ${last.toFixed(0)} s, ${values.length} chunks`;
}
