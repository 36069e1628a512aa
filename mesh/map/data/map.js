"use strict";
// The map comes drawn; this redraws it round another node, and answers to the pointer and the keyboard. It asks nobody for anything.
// Names come from peers: they are put in as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("facts").textContent);
  const svg = document.querySelector("svg.map");
  const part = (name) => svg.querySelector("g." + name);
  const nodes = data.nodes, count = nodes.length, centre = { x: data.x, y: data.y };
  const pairs = nodes.map(() => new Map());
  data.pairs.forEach((flat, one) => {
    for (let at = 0; at < flat.length; at += 5) {
      const pair = { ms: flat[at + 1] * data.unit, low: flat[at + 2] * data.unit, high: flat[at + 3] * data.unit, source: data.sources[flat[at + 4]] };
      pairs[one].set(flat[at], pair);
      pairs[flat[at]].set(one, pair);
    }
  });
  const here = { ms: 0, low: 0, high: 0, source: "self" };
  const between = (one, other) => (one === other ? here : pairs[one].get(other));
  const isMeasured = (pair) => pair.source === "measured" || pair.source === "edges";
  const figure = (ms) => (ms < 1 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : ms.toFixed(0)) + " ms";

  let middle = 0, logarithmic = data.logarithmic, angles = new Array(count).fill(0), spots = new Array(count), shown = [];

  function scaleFor(all) {
    const ms = all.filter((value) => value > 0).sort((a, b) => a - b);
    const high = ms.length ? ms[ms.length - 1] * 1.05 : 1;
    const low = logarithmic && ms.length ? Math.max(ms[0] * 0.8, high / 1e5) : 0;
    const pixels = (value) => low === 0 ? data.reach * value / high : value <= 0 ? 0
      : data.core + (data.reach - data.core) * Math.max(0, Math.log(value / low)) / Math.log(high / low);
    const round = [];
    for (let power = -4; power < 6; power++) for (const step of [1, 2, 5]) round.push({ ms: step * 10 ** power, decade: step === 1 });
    let rings;
    if (low === 0) {
      const step = round.find((ring) => high / ring.ms < data.ringsMax).ms;
      rings = Array.from({ length: Math.floor(high / step + 1e-9) }, (_, number) => step * (number + 1));
    } else {
      const within = round.filter((ring) => low < ring.ms && ring.ms <= high);
      const decades = within.filter((ring) => ring.decade);
      rings = (within.length <= data.ringsMax || decades.length < 2 ? within : decades).map((ring) => ring.ms);
    }
    return { pixels, rings, high };
  }

  // Each node by turns takes the angle at which its distances to the others come nearest to the known ones (mesh/map/layout.py).
  function settle() {
    const radius = (number) => between(middle, number).ms;
    const at = shown.map((number) => [radius(number) * Math.cos(angles[number]), radius(number) * Math.sin(angles[number])]);
    const place = new Map(shown.map((number, order) => [number, order]));
    const known = shown.map((number) => {
      const found = [];
      if (number !== middle) for (const [other, pair] of pairs[number]) if (other !== middle && place.has(other)) found.push([place.get(other), pair.ms, 1 / (pair.ms + 0.5) ** 2]);
      return found;
    });
    const cost = (angle, r, others) => {
      const x = r * Math.cos(angle), y = r * Math.sin(angle);
      let sum = 0;
      for (const [other, ms, weight] of others) sum += (Math.hypot(x - at[other][0], y - at[other][1]) - ms) ** 2 * weight;
      return sum;
    };
    const order = shown.map((_, number) => number).sort((a, b) => radius(shown[b]) - radius(shown[a]));
    for (let turn = 0; turn < 9; turn++) {
      const tries = turn < 4 ? 36 : 5, width = turn < 4 ? 2 * Math.PI : (2 * Math.PI / 36) * 0.6 ** (turn - 4);
      for (const number of order) {
        if (!known[number].length) continue;
        const own = angles[shown[number]], r = radius(shown[number]);
        let best = own, least = cost(own, r, known[number]);
        for (let step = 0; step < tries; step++) {
          const angle = turn < 4 ? own + width * step / tries : own + width * (step / (tries - 1) - 0.5);
          const sum = cost(angle, r, known[number]);
          if (sum < least - 1e-12) [best, least] = [angle, sum];
        }
        angles[shown[number]] = best;
        at[number] = [r * Math.cos(best), r * Math.sin(best)];
      }
    }
  }

  const make = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const measure = document.createElement("canvas").getContext("2d");
  const widthOf = (text) => { measure.font = "600 12px system-ui,sans-serif"; return measure.measureText(text).width * 1.04 + 2; };

  function describe(number) {
    const node = nodes[number], pair = between(middle, number), said = [node.name + (number === data.own ? " (the node asked)" : "")];
    said.push(pair.source === "self" ? "the middle" : `${figure(pair.ms)}, between ${figure(pair.low)} and ${figure(pair.high)} (${pair.source})`);
    if (middle === data.own && node.jitter !== null) said.push("jitter " + figure(node.jitter));
    if (middle === data.own && node.loss !== null) said.push(`loss ${(node.loss * 100).toFixed(1)}%`);
    said.push(node.models.length ? "serves " + node.models.join(", ") : "serves no model");
    if (!["alive", "self", ""].includes(node.standing)) said.push(node.standing);
    return said.join("; ");
  }

  function draw(focus) {
    const taken = [], radius = shown.length <= data.crowd ? data.mark : data.mark * 0.7;
    const free = (box) => !taken.some((other) => box.x < other.x + other.w && other.x < box.x + box.w && box.y < other.y + other.h && other.y < box.y + box.h);
    for (const number of shown) taken.push({ x: spots[number].x - radius, y: spots[number].y - radius, w: 2 * radius, h: 2 * radius });
    drawGround(taken, free);
    part("edges").replaceChildren(...edgeLines());
    part("edges").classList.toggle("many", data.geographic || shown.length > data.crowd);
    part("whiskers").replaceChildren(...(data.geographic || shown.length > data.crowd ? [] : whiskers()));
    part("nodes").replaceChildren(...shown.map((number) => mark(number, radius, taken, free)));
    svg.querySelector(".title").textContent = "Round trips from " + nodes[middle].name;
    svg.querySelector(".small").textContent = [`${shown.length} nodes`, data.geographic ? data.note : logarithmic ? "logarithmic scale" : "linear scale",
      ...(shown.length < count ? [`${count - shown.length} others are not told from here`] : [])].join(" · ");
    if (focus !== undefined) element(focus)?.focus();
  }

  function drawGround(taken, free) {
    if (data.geographic) {
      part("lines").replaceChildren(...isochrones(taken, free));
      return;
    }
    const scale = scaleFor(shown.map((number) => between(middle, number).ms)), parts = [];
    for (const ms of scale.rings) {
      const r = scale.pixels(ms), text = `${+ms.toPrecision(6)} ms`;
      parts.push(make("circle", { class: "ring", cx: centre.x, cy: centre.y, r: r.toFixed(2) }));
      for (const degrees of [90, 75, 105, 60, 120, 45, 135, 270, 255, 285, 0, 180]) {
        const x = centre.x + r * Math.cos(degrees * Math.PI / 180), y = centre.y - r * Math.sin(degrees * Math.PI / 180), w = widthOf(text);
        const box = { x: x - w / 2, y: y - 7, w, h: 14 };
        if (!free(box)) continue;
        taken.push(box);
        parts.push(make("text", { class: "ms", x: x.toFixed(1), y: (y + 4).toFixed(1), "text-anchor": "middle" }, text));
        break;
      }
    }
    part("rings").replaceChildren(...parts);
  }

  function quality(pair, far) {
    const loss = nodes[far].loss ?? 0, jitter = nodes[far].jitter ?? 0;
    if (loss > 0.05 || jitter > Math.max(2, 0.5 * pair.ms)) return "poor";
    return loss > 0.01 || jitter > Math.max(1, 0.15 * pair.ms) ? "fair" : "good";
  }

  function edgeLines() {
    const inside = new Set(shown), found = [];
    for (const one of shown) for (const [other, pair] of pairs[one]) if (one < other && inside.has(other) && isMeasured(pair)) found.push([pair, one, other]);
    found.sort((a, b) => a[0].ms - b[0].ms);
    return found.slice(0, data.edgesMax).map(([pair, one, other]) => {
      const kind = one === data.own || other === data.own ? quality(pair, one === data.own ? other : one) : "good";
      return make("path", { class: "edge " + kind, d: `M${spots[one].x.toFixed(1)} ${spots[one].y.toFixed(1)}L${spots[other].x.toFixed(1)} ${spots[other].y.toFixed(1)}` });
    });
  }

  function whiskers() {
    const scale = scaleFor(shown.map((number) => between(middle, number).ms));
    return shown.filter((number) => number !== middle).map((number) => {
      const pair = between(middle, number), low = scale.pixels(pair.low), high = Math.min(scale.pixels(pair.high), data.reach + 42);
      const ux = Math.cos(angles[number]), uy = -Math.sin(angles[number]);
      return high - low > 0.02 * data.reach && make("path", { class: "bounds",
        d: `M${(centre.x + low * ux).toFixed(1)} ${(centre.y + low * uy).toFixed(1)}L${(centre.x + high * ux).toFixed(1)} ${(centre.y + high * uy).toFixed(1)}` });
    }).filter(Boolean);
  }

  function mark(number, radius, taken, free) {
    const { x, y } = spots[number], node = nodes[number], pair = between(middle, number), said = describe(number);
    const kinds = ["node", number === middle ? "middle" : isMeasured(pair) ? "measured" : "", number === data.own ? "own" : "",
      ["alive", "self", ""].includes(node.standing) ? "" : "away"];
    const group = make("g", { class: kinds.filter(Boolean).join(" "), role: "button", tabindex: 0, "data-node": number, "aria-label": said });
    group.append(make("title", {}, said), make("circle", { class: "spot", cx: x.toFixed(2), cy: y.toFixed(2), r: data.touch }),
      make("circle", { class: "halo", cx: x.toFixed(2), cy: y.toFixed(2), r: radius + 4 }), make("circle", { class: "mark", cx: x.toFixed(2), cy: y.toFixed(2), r: radius }));
    const time = number === middle ? "" : " " + figure(pair.ms), w = widthOf(node.name + time), gap = radius + 3;
    for (const [dx, dy, held] of [[gap, -7.5, "start"], [-gap - w, -7.5, "end"], [gap, -gap - 11, "start"], [gap, gap - 4, "start"],
      [-gap - w, -gap - 11, "end"], [-gap - w, gap - 4, "end"], [-w / 2, -gap - 15, "middle"], [-w / 2, gap, "middle"]]) {
      const box = { x: x + dx, y: y + dy, w, h: 15 };
      if (box.x < 4 || box.x + w > data.width - 4 || box.y < data.top || box.y + 15 > data.top + data.height || !free(box)) continue;
      taken.push(box);
      const text = make("text", { class: "name", x: (box.x + { start: 0, middle: w / 2, end: w }[held]).toFixed(1), y: (box.y + 11.5).toFixed(1), "text-anchor": held }, node.name);
      text.append(make("tspan", {}, time));
      group.append(text);
      break;
    }
    return group;
  }

  // Isochrones on the world: times between the nodes by inverse distance, and lines where they cross round numbers (mesh/map/world.py).
  function isochrones(taken, free) {
    const grid = data.grid, values = [], known = shown.map((number) => ({ ...unit(nodes[number]), ms: between(middle, number).ms }));
    const scale = scaleFor(shown.map((number) => between(middle, number).ms)), parts = [];
    for (let row = 0; row <= grid.rows; row++) for (let column = 0; column <= grid.columns; column++) {
      const spot = unit({ latitude: grid.north - row * grid.step, longitude: grid.west + column * grid.step });
      let sum = 0, weights = 0, nearest = Infinity;
      for (const node of known) {
        const km = 6371 * Math.acos(Math.max(-1, Math.min(1, spot.x * node.x + spot.y * node.y + spot.z * node.z))), weight = 1 / (km + grid.softKm) ** 2;
        sum += weight * node.ms; weights += weight; nearest = Math.min(nearest, km);
      }
      values.push(nearest > grid.reachKm ? NaN : sum / weights);
    }
    for (const ms of scale.rings) {
      const lines = cross(values, ms, grid);
      if (!lines.length) continue;
      parts.push(make("path", { class: "line", d: lines.map(([a, b]) => `M${a[0].toFixed(1)} ${a[1].toFixed(1)}L${b[0].toFixed(1)} ${b[1].toFixed(1)}`).join("") }));
      const text = `${+ms.toPrecision(6)} ms`, w = widthOf(text);
      for (const [[x, y]] of lines) {
        const box = { x: x - w / 2, y: y - 7, w, h: 14 };
        if (box.x < 4 || box.x + w > data.width - 4 || !free(box)) continue;
        taken.push(box);
        parts.push(make("text", { class: "ms", x: x.toFixed(1), y: (y + 4).toFixed(1), "text-anchor": "middle" }, text));
        break;
      }
    }
    return parts;
  }
  function unit(place) {
    const p = place.latitude * Math.PI / 180, l = place.longitude * Math.PI / 180;
    return { x: Math.cos(p) * Math.cos(l), y: Math.cos(p) * Math.sin(l), z: Math.sin(p) };
  }
  function cross(values, ms, grid) {
    const lines = [], width = grid.columns + 1;
    for (let row = 0; row < grid.rows; row++) for (let column = 0; column < grid.columns; column++) {
      const corners = [[column, row], [column + 1, row], [column + 1, row + 1], [column, row + 1]].map(([x, y]) => ({ x, y, ms: values[y * width + x] }));
      if (corners.some((corner) => Number.isNaN(corner.ms))) continue;
      const found = [];
      corners.forEach((a, side) => {
        const b = corners[(side + 1) % 4];
        if ((a.ms < ms) !== (b.ms < ms)) {
          const share = (ms - a.ms) / (b.ms - a.ms);
          found.push([grid.left + (a.x + (b.x - a.x) * share) * grid.cell, grid.top + (a.y + (b.y - a.y) * share) * grid.cell]);
        }
      });
      for (let number = 0; number + 1 < found.length; number += 2) lines.push([found[number], found[number + 1]]);
    }
    return lines;
  }

  function round(next, focus) {
    const plane = new Map(shown.map((number) => [number, [between(middle, number).ms * Math.cos(angles[number]), between(middle, number).ms * Math.sin(angles[number])]]));
    const from = plane.get(next);
    if (next !== middle) {
      for (let number = 0; number < count; number++) {
        const at = plane.get(number);
        angles[number] = at === undefined || number === next ? number * Math.PI * (3 - Math.sqrt(5)) : Math.atan2(at[1] - from[1], at[0] - from[0]);
      }
    }
    middle = next;
    shown = nodes.map((_, number) => number).filter((number) => between(middle, number) !== undefined);
    shown.sort((a, b) => between(middle, a).ms - between(middle, b).ms || a - b);
    if (!data.geographic) {
      settle();
      const scale = scaleFor(shown.map((number) => between(middle, number).ms));
      for (const number of shown) {
        const r = scale.pixels(between(middle, number).ms);
        spots[number] = { x: centre.x + r * Math.cos(angles[number]), y: centre.y - r * Math.sin(angles[number]) };
      }
    }
    draw(focus);
    tell(middle);
  }

  const element = (number) => svg.querySelector(`[data-node="${number}"]`);
  const panel = document.getElementById("about");
  function tell(number) {
    const node = nodes[number], pair = between(middle, number), rows = [];
    const title = document.createElement("h2");
    title.textContent = node.name;
    if (node.owner) rows.push(["owner", node.owner]);
    rows.push(["peer", node.peer_id]);
    if (pair.source === "self") rows.push(["round trip", "the middle of the map"]);
    else rows.push(["round trip", figure(pair.ms)], ["nine of ten", `${figure(pair.low)} to ${figure(pair.high)}`], ["known by", pair.source]);
    if (middle === data.own && node.jitter !== null) rows.push(["jitter", figure(node.jitter)]);
    if (middle === data.own && node.loss !== null) rows.push(["loss", `${(node.loss * 100).toFixed(1)} %`]);
    rows.push(["models", node.models.join(", ") || "none"], ["standing", node.standing || "not told"]);
    const list = document.createElement("dl");
    for (const [name, value] of rows) {
      const dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = name; dd.textContent = value; list.append(dt, dd);
    }
    panel.replaceChildren(title, list);
  }

  const ways = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  function step(from, [dx, dy]) {
    let best, least = Infinity;
    for (const number of shown) {
      const x = spots[number].x - spots[from].x, y = spots[number].y - spots[from].y, along = x * dx + y * dy, aside = Math.abs(x * dy - y * dx);
      if (number === from || along <= 0 || aside > along * 1.2) continue;
      const far = along + 2 * aside;
      if (far < least) [best, least] = [number, far];
    }
    if (best !== undefined) element(best).focus();
  }

  const node = (event) => { const found = event.target.closest?.("[data-node]"); return found === null || found === undefined ? undefined : +found.dataset.node; };
  const keys = document.getElementById("keys");
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input,summary,a")) return;
    const number = node(event);
    if (event.key in ways) { event.preventDefault(); number === undefined ? element(middle).focus() : step(number, ways[event.key]); }
    else if ((event.key === "Enter" || event.key === " ") && number !== undefined) { event.preventDefault(); round(number, number); }
    else if (event.key === "Home") { event.preventDefault(); element(middle).focus(); }
    else if (event.key === "?") keys.hidden = !keys.hidden;
    else if (event.key === "Escape") { keys.hidden = true; document.activeElement?.blur(); tell(middle); }
    else if (event.key === "l" && !data.geographic) { logarithmic = !logarithmic; round(middle, number); }
    else if (event.key === "0") round(0, 0);
  });
  svg.addEventListener("focusin", (event) => { const number = node(event); if (number !== undefined) tell(number); });
  svg.addEventListener("pointerover", (event) => { const number = node(event); if (number !== undefined) tell(number); });
  svg.addEventListener("click", (event) => { const number = node(event); if (number !== undefined) element(number).focus(); });
  svg.addEventListener("dblclick", (event) => { const number = node(event); if (number !== undefined) round(number, number); });

  shown = nodes.map((_, number) => number);
  shown.forEach((number) => { const { x, y, angle } = nodes[number]; spots[number] = { x, y }; angles[number] = angle; element(number).setAttribute("role", "button"); });
  document.documentElement.classList.add("live");
  tell(0);
})();
