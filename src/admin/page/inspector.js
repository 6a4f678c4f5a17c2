// The inspector. What models and tools say is hostile: it only ever becomes text (`textContent`).
'use strict';

const $ = (id) => document.getElementById(id);
const state = { info: null, runs: new Map(), rows: new Map(), order: [], selected: null, open: null, tab: 'calls', page: 'runs', marked: null };

/** An element: `class`, `on…` and attributes, then children, which are elements or text. */
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'class') element.className = value;
    else if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'style') Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const seconds = (ms) => (ms === null || ms === undefined ? '–' : ms < 1 ? '0 ms' : ms < 1000 ? `${Math.round(ms)} ms` : ms < 10000 ? plain(ms) : `${(ms / 1000).toFixed(1)} s`);
// As `fanfold tail` rounds it.
const plain = (ms) => `${(Math.round(ms / 10) / 100).toFixed(2)} s`;
const count = (n, one, many) => `${n} ${n === 1 ? one : many || one + 's'}`;
const size = (bytes) => (bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1048576).toFixed(1)} MiB`);

function ago(ms) {
  const past = Math.max(0, (Date.now() - ms) / 1000);
  if (past < 5) return 'now';
  if (past < 60) return `${Math.floor(past)} s ago`;
  if (past < 3600) return `${Math.floor(past / 60)} min ago`;
  const at = new Date(ms);
  return past < 86400 ? at.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' }) : at.toLocaleDateString();
}

function standing(outcome) {
  if (!outcome) return 'running';
  return outcome === 'ok' ? 'ok' : outcome === 'client_gone' ? 'gone' : 'bad';
}
const words = { ok: 'ok', client_gone: 'client left', failed_after_tools: 'failed after tools', timeout: 'timed out', refused: 'refused', error: 'error', lost: 'lost' };
const word = (outcome) => (outcome ? words[outcome] || outcome : 'running');

async function get(path) {
  const answer = await fetch(path, { headers: { accept: 'application/json' } });
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || `${answer.status}`);
  return answer.json();
}

let toasting;
function toast(text) {
  $('toast').textContent = text;
  $('toast').classList.add('on');
  clearTimeout(toasting);
  toasting = setTimeout(() => $('toast').classList.remove('on'), 1800);
}

async function copy(text, said) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without a secure context there is no clipboard, but the old way still works.
    const area = h('textarea', { style: { position: 'fixed', opacity: '0' } });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
  toast(said);
}

// ---- the list

/** Of a whole run, what its line in the list shows. */
function summary(run) {
  return {
    id: run.id, request_id: run.request_id, team: run.team, model: run.model, kind: run.kind, began: run.began,
    rounds: run.rounds.length, calls: run.calls.length,
    failed: run.calls.filter((call) => call.outcome && call.outcome !== 'ok').length,
    total: run.end ? run.end.total : null, outcome: run.end ? run.end.outcome : null, error: run.end ? run.end.error : null,
    saved: run.batches.reduce((sum, batch) => sum + Math.max(0, batch.sum - batch.wall), 0),
    tokens: run.end ? run.end.tokens : null, cost: run.end ? run.end.cost : undefined,
  };
}

function fits(run) {
  const outcome = $('outcome').value;
  if ($('team').value && run.team !== $('team').value) return false;
  if (outcome === 'running' && run.outcome) return false;
  if (outcome === 'ok' && run.outcome !== 'ok') return false;
  if (outcome === 'failed' && (!run.outcome || run.outcome === 'ok')) return false;
  const said = `${run.model} ${run.team} ${run.id} ${run.request_id} ${run.error || ''} ${word(run.outcome)} ${run.kind}`.toLowerCase();
  return $('filter').value.toLowerCase().split(/\s+/).every((part) => said.includes(part));
}

function fill(row, run) {
  const facts = [run.kind === 'relay' ? 'relayed' : `${count(run.rounds, 'round')}, ${count(run.calls, 'call')}`];
  row.replaceChildren(
    h('span', { class: `dot ${standing(run.outcome)}`, title: word(run.outcome) }),
    h('span', { class: 'name' }, run.model, h('span', {}, `  ${run.team}`)),
    h('span', { class: 'time' }, run.total === null ? '…' : seconds(run.total)),
    h('span', { class: 'facts' }, facts[0],
      run.saved >= 1 ? h('span', { class: 'gain' }, `, ${seconds(run.saved)} saved`) : null,
      run.failed ? h('span', { class: 'wrong' }, `, ${run.failed} failed`) : null,
      run.outcome && run.outcome !== 'ok' ? h('span', { class: 'wrong' }, `, ${run.error || word(run.outcome)}`) : null),
    h('span', { class: 'when' }, ago(run.began)),
  );
}

function rowOf(id) {
  let row = state.rows.get(id);
  if (!row) {
    row = h('div', { class: 'row', role: 'option', id: `row-${id}`, onclick: () => go(id) });
    state.rows.set(id, row);
  }
  return row;
}

function listed() {
  const all = [...state.runs.values()].filter(fits);
  all.sort((a, b) => b.began - a.began || (a.id < b.id ? 1 : -1));
  return all;
}

let due = false;
const changed = new Set();
/** Draws the list once, however much is new. */
function soon() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    draw();
  });
}

function draw() {
  const all = listed();
  const order = all.map((run) => run.id);
  for (const run of all) {
    const fresh = !state.rows.has(run.id);
    if (fresh || changed.has(run.id)) fill(rowOf(run.id), run);
    rowOf(run.id).setAttribute('aria-selected', String(run.id === state.selected));
  }
  changed.clear();
  if (order.join() !== state.order.join()) {
    state.order = order;
    const top = $('rows').scrollTop;
    $('rows').replaceChildren(...order.map(rowOf));
    $('rows').scrollTop = top;
  }
  const total = state.runs.size;
  $('count').textContent = all.length === total ? count(total, 'run') : `${all.length} of ${count(total, 'run')}`;
  const teams = [...new Set([...state.runs.values()].map((run) => run.team))].sort();
  if (teams.join() !== state.teams) {
    state.teams = teams.join();
    const chosen = $('team').value;
    $('team').replaceChildren(h('option', { value: '' }, 'all teams'), ...teams.map((team) => h('option', { value: team }, team)));
    $('team').value = teams.includes(chosen) ? chosen : '';
  }
  if (!state.selected) drawNothing();
}

async function load() {
  const info = await get('api/runs');
  state.info = info;
  $('base').textContent = info.base_url;
  state.runs = new Map(info.runs.map((run) => [run.id, run]));
  for (const id of state.rows.keys()) if (!state.runs.has(id)) state.rows.delete(id);
  info.runs.forEach((run) => changed.add(run.id));
  draw();
}

// ---- one run

function base() {
  const url = new URL(state.info.base_url);
  if (['0.0.0.0', '[::]'].includes(url.hostname)) url.hostname = location.hostname;
  return url.href.replace(/\/$/, '');
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
function curl(body, streams) {
  return `curl -s${streams ? 'N' : ''} ${base()}/chat/completions \\\n  -H 'content-type: application/json' \\\n  -H "authorization: Bearer $FANFOLD_API_KEY" \\\n  -d ${quoted(body)}`;
}

/** The request of a run as a command, or why there is none. */
function command(open) {
  const sent = open.content && open.content.request;
  if (!open.run.end) return { why: 'The run has not ended yet.' };
  if (!sent) return { why: 'What was said is not kept: set `runs.content: true` to keep it.' };
  if (cut(sent)) return { why: `The request is larger than what is kept of it: raise \`runs.text\` above ${size(sent.bytes)}.` };
  return { text: curl(sent.text, open.run.stream) };
}

const cut = (text) => new TextEncoder().encode(text.text).length < text.bytes;

function drawNothing() {
  const drawn = state.runs.size ? 'choose' : 'empty';
  if (!state.info || state.drawn === drawn) return;
  state.drawn = drawn;
  if (!state.info.remembers) {
    $('detail').replaceChildren(h('div', { class: 'empty' }, h('h1', {}, 'Runs are not remembered'), h('p', {}, 'Set `runs.keep` above 0 in the configuration to see them here.')));
    return;
  }
  if (state.runs.size) {
    $('detail').replaceChildren(h('div', { class: 'empty' }, h('h1', {}, 'Choose a run'), h('p', {}, 'Its rounds and calls are shown here as they happened, side by side where they ran side by side.')));
    return;
  }
  const body = JSON.stringify({ model: 'demo', stream: true, messages: [{ role: 'user', content: 'What is the weather in Paris, Tokyo and Lima?' }] });
  const text = curl(body, true);
  $('detail').replaceChildren(h('div', { class: 'empty' },
    h('h1', {}, 'Nothing has run yet'),
    h('p', {}, 'Point an OpenAI SDK at ', h('span', { class: 'mono' }, base()), ', or send this with a model of yours. It shows up here while it runs.'),
    h('pre', { id: 'first' }, text),
    h('button', { type: 'button', onclick: () => copy(text, 'Copied') }, 'Copy')));
}

async function open(id) {
  state.selected = id;
  state.marked = null;
  state.drawn = null;
  changed.add(id);
  show();
  try {
    const found = await get(`api/runs/${encodeURIComponent(id)}`);
    if (state.selected !== id) return;
    // A link may name a run by the id of its request.
    state.selected = found.run.id;
    state.open = { ...found, at: performance.now() };
    drawRun();
  } catch (error) {
    state.open = null;
    $('detail').replaceChildren(h('div', { class: 'empty' }, h('h1', {}, 'This run is not here'), h('p', {}, String(error.message))));
  }
  show();
}

/** Draws the list with the selected run in sight. */
function show() {
  draw();
  const row = state.rows.get(state.selected);
  if (row) row.scrollIntoView({ block: 'nearest' });
}

/** How far a run that goes on has come, in ms. */
function reached(open) {
  const { run } = open;
  if (run.end) return run.end.total;
  const times = [0, ...run.rounds.flatMap((r) => [r.asked, r.first, r.ended]), ...run.calls.flatMap((c) => [c.queued, c.started, c.ended])];
  return Math.max(...times.map((time) => time || 0)) + (performance.now() - open.at);
}

function drawRun() {
  const current = state.open;
  if (!current) return;
  const { run } = current;
  const end = run.end;
  const made = command(current);
  const at = new Date(run.began);
  const kind = standing(end && end.outcome);
  const saved = run.batches.reduce((sum, batch) => sum + Math.max(0, batch.sum - batch.wall), 0);
  const first = end ? end.first : (run.rounds.find((round) => round.first !== null) || {}).first;
  // Who waits for the whole answer sees its first token with its last.
  const streams = run.stream || !end;
  const figure = (value, name) => h('div', {}, h('b', {}, value), h('small', {}, name));
  const keep = $('detail').scrollTop;
  $('detail').replaceChildren(
    h('div', { class: 'head' },
      h('div', {},
        h('h1', {}, run.model, h('span', { class: `badge ${kind}` }, word(end && end.outcome))),
        h('div', { class: 'sub' }, `${run.team}, `, `upstream ${run.upstream}, ${run.kind === 'relay' ? 'relayed as it came' : run.stream ? 'streamed' : 'answered whole'}, ${at.toLocaleString()}`,
          h('div', {}, 'request ', h('span', { class: 'mono' }, run.request_id)),
          run.trace ? h('div', {}, 'trace ', h('span', { class: 'mono' }, run.trace)) : null)),
      h('div', { class: 'actions' },
        h('button', { id: 'curl', type: 'button', disabled: !made.text, title: made.why, onclick: () => copy(made.text, made.text.includes('••••') ? 'Copied as curl, its secrets as dots' : 'Copied as curl') }, 'Copy as curl'),
        h('button', { id: 'link', type: 'button', onclick: () => copy(location.href, 'Copied the link') }, 'Copy link'))),
    h('div', { class: 'figures' },
      figure(end ? seconds(end.total) : '…', 'wall time'),
      streams ? figure(seconds(first), 'first token') : null,
      figure(String(run.rounds.length), run.rounds.length === 1 ? 'round' : 'rounds'),
      run.kind === 'turn' ? figure(String(run.calls.length), run.calls.length === 1 ? 'call' : 'calls') : null,
      saved >= 1 ? figure(seconds(saved), 'saved by running in parallel') : null,
      end ? figure(`${end.tokens[0]} + ${end.tokens[1]}${end.tokens_partial ? '?' : ''}`, end.tokens_partial ? 'tokens reported' : 'tokens in + out') : null,
      end && end.cost !== undefined ? figure(end.cost, 'cost') : null,
      end && end.overhead ? figure(seconds(end.overhead), 'overhead') : null),
    h('section', { class: 'card', 'aria-label': 'Waterfall' }, waterfall(current)),
    decision(run),
    tabs(current),
  );
  $('detail').scrollTop = keep;
}

function ticks(total) {
  const rough = total / 6;
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) || power;
  const marks = [];
  for (let at = 0; at < total - step * 0.4; at += step) marks.push(at);
  return marks;
}

function waterfall(current) {
  const { run } = current;
  const total = Math.max(1, reached(current));
  // The longest bar leaves room for its own time.
  const scale = total * 1.06;
  const x = (ms) => `${(ms / scale) * 100}%`;
  const wide = (from, to) => `${(Math.max(0, to - from) / scale) * 100}%`;
  const seg = (kind, from, to, title) => h('span', { class: `seg ${kind}`, title, style: { left: x(from), width: wide(from, to) } });
  // A time stands behind its bar; where there is no room, in it, and before it if the bar is too short.
  const took = (from, to, text) => {
    if (to / scale <= 0.86) return h('span', { class: 'took', style: { left: x(to) } }, text);
    const inside = (to - from) / scale > 0.05 + text.length * 0.011;
    return h('span', { class: `took before${inside ? ' inside' : ''}`, style: { left: x(inside ? to : from) } }, text);
  };
  const again = (tries) => (tries || []).map((one) => {
    const at = typeof one === 'number' ? one : one.at;
    return h('i', { class: 'again', style: { left: x(at) }, title: `tried again after ${seconds(at)}${one.why ? `: ${one.why}` : ''}` });
  });
  const marks = ticks(total);
  const lanes = [];
  run.rounds.forEach((round, i) => {
    const until = round.ended ?? (run.end ? run.end.total : total);
    const firstToken = round.first ?? until;
    const running = round.ended === null && !run.end;
    const said = round.first === null ? '' : `first token ${seconds(round.first - round.asked)}`;
    lanes.push(h('div', { class: 'lane round' },
      h('div', { class: 'label' }, h('b', {}, `Round ${i + 1}`), h('small', {}, said)),
      h('div', { class: 'track' },
        seg(`ask${running && round.first === null ? ' open' : ''}`, round.asked, firstToken, `until the first token: ${seconds(firstToken - round.asked)}`),
        round.first === null ? null : seg(`say${running ? ' open' : ''}`, firstToken, until, `reply: ${seconds(until - firstToken)}`),
        again(round.again),
        running ? null : took(round.asked, until, seconds(until - round.asked)))));
    const calls = run.calls.map((call, index) => ({ call, index })).filter(({ call }) => call.round === i + 1);
    if (!calls.length) return;
    const batch = run.batches.find((one) => one.round === i + 1);
    const several = calls.length > 1;
    const rows = calls.map(({ call, index }) => callLane(call, index, current, { seg, took, again, total }));
    let said2 = null;
    if (batch && batch.calls > 1) {
      said2 = h('div', { class: 'sum' }, h('span', {}, `batch ${plain(batch.wall)}, one after another ${plain(batch.sum)}, `, h('b', {}, `×${batch.factor.toFixed(1)}`)));
    } else if (several) {
      said2 = h('div', { class: 'sum' }, h('span', {}, `batch of ${calls.length}`));
    }
    lanes.push(h('div', { class: `batch${several ? '' : ' single'}` }, h('span', { class: 'bracket' }), rows, said2));
  });
  const waits = run.calls.some((call) => (call.started ?? call.queued) - call.queued > 1);
  const tried = run.calls.some((call) => call.again.length) || run.rounds.some((round) => round.again.length);
  const key = (kind, text) => h('span', {}, h('i', {}, h('span', { class: `seg ${kind}`, style: { left: '0', right: '0' } })), text);
  return h('div', { class: 'fall' },
    h('div', { class: 'lanes' },
      h('div', { class: 'axis' }, marks.map((at) => h('span', { style: { left: x(at) } }, seconds(at)))),
      h('div', { class: 'lines' }, marks.map((at) => h('i', { style: { left: x(at) } }))),
      lanes),
    h('div', { class: 'legend' },
      key('ask', 'model, until its first token'), key('say', 'model speaks'),
      run.calls.length ? key('run', 'tool runs') : null,
      run.calls.some((call) => call.outcome && call.outcome !== 'ok') ? key('run bad', 'tool failed') : null,
      run.calls.some((call) => call.shared) ? key('run shared', 'shares the run of an equal call') : null,
      waits ? key('wait', 'waits for a slot') : null,
      tried ? h('span', {}, h('i', {}, h('span', { class: 'again', style: { left: '8px', top: '0', bottom: '0' } })), 'tried again') : null));
}

function callLane(call, index, current, { seg, took, again, total }) {
  const ended = call.ended ?? (current.run.end ? current.run.end.total : total);
  const started = call.started ?? ended;
  const running = call.ended === null && !current.run.end;
  const bad = call.outcome && call.outcome !== 'ok';
  const said = current.content && current.content.calls[index];
  const hint = said && said.arguments ? said.arguments.text : '';
  const title = `${call.tool}: ${word(call.outcome)}${call.started === null ? ', did not run' : `, ran ${seconds(ended - started)}`}`;
  const text = `${call.started === null && call.ended !== null ? 'not run' : seconds(ended - started)}${bad ? ` ${call.outcome.replaceAll('_', ' ')}` : ''}${call.shared ? ' shared' : ''}`;
  return h('div', { class: 'lane call', 'data-call': index, title, onclick: () => showCall(index) },
    h('div', { class: 'label' }, h('b', {}, call.tool), h('small', {}, hint)),
    h('div', { class: 'track' },
      started - call.queued > 1 ? seg('wait', call.queued, started, `waited ${seconds(started - call.queued)} for a slot`) : null,
      call.started === null && !bad ? null : seg(`run${bad ? ' bad' : ''}${call.shared ? ' shared' : ''}${running ? ' open' : ''}`, started, ended, title),
      again(call.again),
      running ? null : took(started - call.queued > 1 ? call.queued : started, ended, text)));
}

function showCall(index) {
  state.tab = 'calls';
  state.marked = index;
  drawRun();
  const heading = document.querySelector(`[data-heading="${index}"]`);
  if (heading) heading.scrollIntoView({ block: 'center', behavior: 'smooth' });
}

function decision(run) {
  const rows = [['parallel calls', `${run.parallel.split(';')[0]}: ${run.because}`]];
  if (run.kind === 'turn') rows.push(['tools offered', count(run.tools, 'tool') + ' of ours']);
  rows.push(['route', run.route === 'other' ? `to ${run.upstream}, the only upstream` : `${run.route} to ${run.upstream}`]);
  if (run.limits.length) rows.push(['limits reached', run.limits.join(', ')]);
  if (run.mixed) rows.push(['mixed reply', 'The model called tools of ours and of the client; our results are kept until the client comes back.']);
  const again = run.rounds.flatMap((round, i) => round.again.map((one) => `round ${i + 1} after ${seconds(one.at)} (${one.why})`));
  if (again.length) rows.push(['asked again', again.join(', ')]);
  if (run.client_gone) rows.push(['client', 'left before its answer was complete']);
  if (run.end && run.end.error) rows.push(['error', `${run.end.status} ${run.end.error}`]);
  return h('section', { class: 'card', id: 'decision' }, h('h2', {}, 'What was decided'),
    h('dl', { class: 'decision' }, rows.map(([name, text]) => [h('dt', {}, name), h('dd', {}, text)])));
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** A kept text, with a word where it is not whole. */
function block(text, shape = pretty) {
  if (!text) return h('p', { class: 'note' }, 'Nothing is kept.');
  return [h('pre', {}, shape(text.text)), cut(text) ? h('p', { class: 'note' }, `Cut: ${size(text.bytes)} in all.`) : null];
}

const TABS = [['calls', 'Tool calls'], ['messages', 'Messages'], ['upstream', 'Sent upstream'], ['response', 'Response'], ['record', 'Record']];

function tabs(current) {
  const panel = { calls: callsPanel, messages: messagesPanel, upstream: upstreamPanel, response: responsePanel, record: recordPanel }[state.tab];
  return h('section', { class: 'card' },
    h('div', { class: 'tabs', role: 'tablist' }, TABS.map(([id, name]) =>
      h('button', { type: 'button', role: 'tab', id: `tab-${id}`, 'aria-selected': String(id === state.tab), onclick: () => { state.tab = id; drawRun(); } }, name))),
    h('div', { class: 'panel', role: 'tabpanel', id: 'panel' }, panel(current)));
}

function absent(current) {
  if (current.content) return null;
  const why = !current.run.end ? 'What is said is shown when the run has ended.'
    : state.info.content ? 'Nothing is kept of what was said in this run.'
      : 'What is said in runs is not kept. `runs.content: true` in the configuration keeps messages, arguments, results and answers; whoever reaches this page can then read them.';
  return h('p', { class: 'note' }, why);
}

function callsPanel(current) {
  const { run, content } = current;
  if (!run.calls.length) return h('p', { class: 'note' }, run.kind === 'relay' ? 'This chat went through as it came: no tool of ours took part.' : 'The model called no tool of ours.');
  return [absent(current), run.calls.map((call, i) => {
    const said = content && content.calls[i];
    const wait = (call.started ?? call.ended ?? call.queued) - call.queued;
    const facts = [`round ${call.round}`, call.effect || 'no such tool', word(call.outcome),
      call.started !== null && call.ended !== null ? `ran ${seconds(call.ended - call.started)}` : null,
      wait > 1 ? `waited ${seconds(wait)}` : null,
      call.again.length ? `tried ${call.again.length + 1} times` : null,
      call.shared ? 'shared the run of an equal call' : null, call.id].filter(Boolean);
    return [
      h('h3', { 'data-heading': i }, call.tool, h('small', {}, facts.join(', '))),
      said ? h('div', { class: 'pair' },
        h('div', {}, h('small', {}, 'arguments'), block(said.arguments)),
        h('div', {}, h('small', {}, 'result, as the model reads it'), block(said.result))) : null,
    ];
  })];
}

function message(one) {
  const parts = [];
  if (typeof one.content === 'string' && one.content) parts.push(h('div', { class: 'text' }, one.content));
  else if (one.content) parts.push(h('pre', {}, JSON.stringify(one.content, null, 2)));
  for (const call of one.tool_calls || []) {
    const of = call.function || {};
    const sent = of.arguments || '';
    parts.push(h('pre', {}, `${of.name || call.type} ${sent.length > 100 ? pretty(sent) : sent}`));
  }
  return h('div', { class: 'say-from' }, h('div', { class: 'role' }, one.role || '?', one.name ? h('div', { class: 'mono' }, one.name) : null), h('div', {}, parts));
}

function messagesPanel(current) {
  const { content } = current;
  if (!content) return absent(current);
  const last = content.asked[content.asked.length - 1];
  if (!last || !last.body) return h('p', { class: 'note' }, 'Nothing is kept of the messages.');
  let messages;
  try {
    messages = JSON.parse(last.body.text).messages;
  } catch {
    return [h('p', { class: 'note' }, 'The messages are longer than what is kept of them; this is their beginning.'), block(last.body)];
  }
  const answer = content.answer && content.answer.text && current.run.kind === 'turn' ? [message({ role: 'answer', content: content.answer.text })] : [];
  return (Array.isArray(messages) ? messages : []).map(message).concat(answer);
}

function upstreamPanel(current) {
  if (!current.content) return absent(current);
  return current.content.asked.map((asked) => [
    h('h3', {}, `Round ${asked.round}`, h('small', {}, asked.attempt ? `asked again, ${asked.attempt}` : '', asked.body ? ` ${size(asked.body.bytes)}` : '')),
    asked.body ? block(asked.body) : h('p', { class: 'note' }, 'There was no memory left to keep it (`runs.bytes`).'),
  ]);
}

function responsePanel(current) {
  if (!current.content) return absent(current);
  const { answer, error } = current.content;
  return [
    error ? [h('h3', {}, 'Error'), block(error)] : null,
    answer && answer.text ? [current.run.kind === 'relay' ? h('p', { class: 'note' }, 'As the model server sent it; of a long reply its end.') : null, block(answer, current.run.kind === 'relay' ? pretty : (text) => text)] : error ? null : h('p', { class: 'note' }, 'The answer had no text.'),
  ];
}

function recordPanel(current) {
  return h('pre', {}, JSON.stringify(current.run, null, 2));
}

// ---- tools and configuration

async function drawTools() {
  const { servers, tools } = await get('api/tools');
  const tag = (text, kind) => h('span', { class: `tag ${kind || ''}` }, text);
  const row = (tool) => h('tr', {},
    h('td', {}, h('b', {}, tool.name), h('div', { class: 'about' }, tool.description || ''),
      h('details', {}, h('summary', {}, 'schema'), h('pre', {}, JSON.stringify(tool.parameters, null, 2)))),
    h('td', {}, tool.server ? `${tool.server} (${tool.kind})` : tool.kind),
    h('td', {}, tag(tool.state, tool.state)),
    h('td', {}, tag(tool.effect, tool.effect), tool.strict ? [' ', tag('strict')] : null),
    h('td', {}, tool.timeout),
    h('td', { class: 'num' }, String(tool.figures.calls)),
    h('td', { class: 'num' }, seconds(tool.figures.p50)),
    h('td', { class: 'num' }, seconds(tool.figures.p95)),
    h('td', { class: 'num' }, h('span', { class: tool.figures.errors ? 'wrong' : '' }, String(tool.figures.errors))));
  const head = [['tool'], ['from'], ['state'], ['effect'], ['timeout'], ['calls', 'num'], ['p50', 'num'], ['p95', 'num'], ['errors', 'num']];
  $('tools').replaceChildren(h('div', {},
    h('h1', {}, 'Tools'), h('p', {}, `${count(tools.length, 'tool')} that fanfold runs. Times are of the last 512 calls.`),
    servers.length ? h('section', { class: 'card' }, h('table', {}, h('thead', {}, h('tr', {}, ['server', 'place', 'state', ''].map((name) => h('th', {}, name)))),
      h('tbody', {}, servers.map((server) => h('tr', {}, h('td', {}, h('b', {}, server.name), server.team ? ` of ${server.team}` : null), h('td', { class: 'mono' }, server.place), h('td', {}, tag(server.state, server.state), server.required ? [' ', tag('required')] : null), h('td', { class: 'about' }, server.says)))))) : null,
    h('section', { class: 'card' }, h('table', {}, h('thead', {}, h('tr', {}, head.map(([name, kind]) => h('th', { class: kind }, name)))), h('tbody', {}, tools.map(row))))));
}

async function drawConfig() {
  const config = await get('api/config');
  const from = (setting) => ({ default: 'default', file: `${config.source}:${setting.line}`, environment: setting.line ? `environment, ${config.source}:${setting.line}` : 'environment', flag: 'command line' })[setting.from];
  const rows = config.settings.map((setting) => {
    const row = h('tr', { class: setting.from === 'default' ? '' : 'said' }, h('td', { class: 'mono' }, setting.path), h('td', { class: 'mono value' }, setting.value), h('td', { class: 'quiet' }, from(setting)));
    row.said = `${setting.path} ${setting.value} ${setting.from}`.toLowerCase();
    return row;
  });
  const find = h('input', { class: 'find', type: 'search', placeholder: 'Filter settings', 'aria-label': 'Filter settings', oninput: () => rows.forEach((row) => { row.hidden = !row.said.includes(find.value.toLowerCase()); }) });
  $('config').replaceChildren(
    h('h1', {}, 'Configuration'), h('p', {}, `What is in use, from ${config.source}. Secrets are dots; what somebody set stands out.`),
    (config.warnings || []).map((warning) => h('p', { class: 'wrong' }, `warning: ${warning}`)), find,
    h('section', { class: 'card' }, h('table', {}, h('thead', {}, h('tr', {}, ['setting', 'value', 'from'].map((name) => h('th', {}, name)))), h('tbody', {}, rows))));
}

// ---- where we are

/** Goes there now: the event of a changed address comes later, and the next key must not be lost to it. */
function to(hash) {
  location.hash = hash;
  route();
}
const go = (id) => to(`run=${encodeURIComponent(id)}`);

function route() {
  const hash = location.hash.slice(1);
  const run = hash.startsWith('run=') ? decodeURIComponent(hash.slice(4)) : null;
  state.page = hash === 'tools' || hash === 'config' ? hash : 'runs';
  for (const page of ['runs', 'tools', 'config']) {
    $(page).hidden = page !== state.page;
    const link = document.querySelector(`nav [data-page="${page}"]`);
    if (page === state.page) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  const failed = (error) => toast(String(error.message));
  if (state.page === 'tools') drawTools().catch(failed);
  if (state.page === 'config') drawConfig().catch(failed);
  if (state.page !== 'runs') return;
  if (run && run !== state.selected) open(run);
  if (!run && state.selected) {
    state.selected = null;
    state.open = null;
    draw();
  }
}

function move(by) {
  if (!state.order.length) return;
  const at = state.order.indexOf(state.selected);
  const next = at < 0 ? 0 : Math.min(state.order.length - 1, Math.max(0, at + by));
  go(state.order[next]);
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches('input, select, textarea');
  if (event.key === 'Escape') {
    if (typing) {
      if (event.target.id === 'filter') { event.target.value = ''; draw(); }
      event.target.blur();
    } else if ($('detail').contains(document.activeElement)) $('rows').focus();
    else to('');
    return;
  }
  if (event.key === 'Enter' && event.target.id === 'filter' && state.order.length) {
    event.target.blur();
    go(state.order[0]);
    return;
  }
  if (typing || state.page !== 'runs') return;
  const actions = {
    j: () => move(1), k: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1),
    Enter: () => { if (!state.selected) move(0); $('detail').focus(); },
    '/': () => $('filter').focus(),
  };
  // Arrows scroll the run that is being read, and Enter presses the button that has the focus.
  const reading = $('detail').contains(document.activeElement);
  if (!actions[event.key] || (reading && (event.key.startsWith('Arrow') || event.target.matches('button')))) return;
  event.preventDefault();
  actions[event.key]();
}

function theme(dark) {
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
}

function watch() {
  const events = new EventSource('api/events');
  const says = (kind, text) => { $('live').className = `live ${kind}`; $('live').lastElementChild.textContent = text; };
  const again = () => load().then(() => state.selected && open(state.selected)).catch(() => says('off', 'not reachable'));
  events.addEventListener('hello', () => { says('on', 'live'); again(); });
  events.addEventListener('lost', again);
  events.addEventListener('error', () => {
    says('off', events.readyState === EventSource.CLOSED ? 'not live' : 'reconnecting');
    if (events.readyState === EventSource.CLOSED && !state.info) load().catch(() => {});
  });
  events.addEventListener('run', (event) => {
    const run = JSON.parse(event.data);
    state.runs.set(run.id, summary(run));
    changed.add(run.id);
    if (run.id === state.selected) {
      if (run.end) open(run.id);
      else {
        state.open = { run, content: null, at: performance.now() };
        drawRun();
      }
    }
    soon();
  });
}

const dark = matchMedia('(prefers-color-scheme: dark)');
let chosen = null;
try { chosen = localStorage.getItem('theme'); } catch { /* A browser may keep nothing. */ }
theme(chosen ? chosen === 'dark' : dark.matches);
dark.addEventListener('change', () => { if (!chosen) theme(dark.matches); });
$('theme').addEventListener('click', () => {
  chosen = document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark';
  theme(chosen === 'dark');
  try { localStorage.setItem('theme', chosen); } catch { /* As above. */ }
});
for (const id of ['filter', 'outcome', 'team']) $(id).addEventListener('input', draw);
document.addEventListener('keydown', keys);
addEventListener('hashchange', route);
// Bars of what still runs grow; times of the list grow old.
setInterval(() => { if (state.open && !state.open.run.end && !document.hidden) drawRun(); }, 120);
setInterval(() => { state.runs.forEach((run) => changed.add(run.id)); if (!document.hidden) soon(); }, 15000);
watch();
route();
