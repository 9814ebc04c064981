// The chat page: a client of this server's own API, and of nothing else.
//
// Text from people and models becomes text nodes only: there is no innerHTML in this file.
'use strict';

const $ = id => document.getElementById(id);

/** An element with properties (or, where it has no such property, attributes) and children. */
function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter(Boolean));
  return node;
}

const setIcon = (button, name) => button.querySelector('use').setAttribute('href', '#i-' + name);

function iconButton(name, label, onclick) {
  const [svg, use] = ['svg', 'use'].map(tag => document.createElementNS('http://www.w3.org/2000/svg', tag));
  svg.append(use);
  const button = el('button', { type: 'button', className: 'icon', title: label, ariaLabel: label, onclick }, svg);
  setIcon(button, name);
  return button;
}

const plainButton = (label, onclick) => el('button', { type: 'button', className: 'plain', onclick }, label);

// ---- what the browser keeps

/** A storage that never throws: it may be forbidden, full, or hold what others wrote. */
const keeper = storage => ({
  read(key, fallback) {
    try { return JSON.parse(window[storage].getItem('ernie.' + key)) ?? fallback; } catch { return fallback; }
  },
  /** Whether it was kept; `undefined` removes. */
  write(key, value) {
    try {
      if (value === undefined) window[storage].removeItem('ernie.' + key);
      else window[storage].setItem('ernie.' + key, JSON.stringify(value));
      return true;
    } catch { return false; }
  },
});
const store = keeper('localStorage');
const session = keeper('sessionStorage'); // the API key, when asked for
let secret = session.read('key', '');

let theme = store.read('theme', 'auto');
const showTheme = () => { document.documentElement.dataset.theme = theme; };
showTheme(); // before the first paint

// ---- chats as trees of messages

// A chat is {id, title, system, kids, pick, nodes}; a node {id, up, role, text, kids, pick}, an answer also has {model,
// thought, calls, stats, cut}. `kids` are the versions of what follows and `pick` is the one on show, so that neither an
// edit nor another try loses anything.

const freshId = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
const freshChat = () => ({ id: freshId(), title: '', system: store.read('system', ''), kids: [], pick: 0, nodes: {} });

let index = []; // [{id, title}], the newest first
let chat;

const above = (of, node) => of.nodes[node.up] ?? of;

/** The messages on show. */
function path(of) {
  const nodes = [];
  for (let at = of; at?.kids.length; at = nodes.at(-1)) nodes.push(of.nodes[at.kids[at.pick]]);
  return nodes;
}

function add(to, up, node) {
  Object.assign(node, { id: freshId(), up: up?.id ?? null, kids: [], pick: 0 });
  to.nodes[node.id] = node;
  const parent = above(to, node);
  parent.pick = parent.kids.push(node.id) - 1;
  return node;
}

/** Takes the newest version away again, which nothing follows. */
function drop(from, node) {
  above(from, node).kids.pop();
  above(from, node).pick = Math.max(0, above(from, node).kids.length - 1);
  delete from.nodes[node.id];
}

/** The messages up to `last`, as the API takes them. */
function transcript(of, last) {
  const messages = [];
  for (let node = last; node; node = of.nodes[node.up]) {
    const { role, text: content, calls = [] } = node;
    const tool_calls = calls.map(({ id, name, args }) => ({ id, type: 'function', function: { name, arguments: args } }));
    messages.unshift({ role, content, ...(calls.length && { tool_calls }) });
  }
  if (of.system.trim()) messages.unshift({ role: 'system', content: of.system });
  return messages;
}

/** The chat of this id, if what was kept has the shape of one. */
function chatOf(id) {
  if (id === chat?.id) return chat;
  if (id && id === live?.chat.id) return live.chat;
  const kept = store.read('chat.' + id, null);
  return Array.isArray(kept?.kids) && kept.nodes && typeof kept.system === 'string' ? kept : null;
}

let warned = false;

function keep(what) {
  index = store.read('chats', index).filter(({ id }) => id !== what.id);
  index.unshift({ id: what.id, title: what.title });
  const kept = store.write('chat.' + what.id, what) && store.write('chats', index);
  if (!kept && !warned) {
    notice('The browser’s storage is full or forbidden: after a reload this chat is gone. Export it, or delete older chats.',
      'Export it', () => download([what]));
  }
  warned = !kept;
  showList();
}

/** Each chat as it is kept, and the messages on show as the API takes them. */
function download(chats) {
  const plain = chats.map(one => ({ ...one, messages: transcript(one, path(one).at(-1)) }));
  const href = URL.createObjectURL(new Blob([JSON.stringify(plain, null, 1)], { type: 'application/json' }));
  el('a', { href, download: 'ernie-chats.json' }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10000);
}

// ---- Markdown as DOM nodes

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s(.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( {1,4}(?! )| +|$)/;
const indent = line => line.length - line.trimStart().length;
/** Whether a line ends the fence that `mark` opened. */
const closes = (line, mark) => indent(line) < 4 && line.trim().length >= mark.length && !line.trim().replaceAll(mark[0], '');
const cells = row => row.trim().replace(/^\||(?<!\\)\|$/g, '').split(/(?<!\\)\|/).map(cell => cell.trim().replaceAll('\\|', '|'));

/** Cuts text into blocks with the offset of their first lines; of lists also those of the items. */
function blocks(text) {
  const found = [];
  const lines = text.split('\n');
  let i = 0;
  let at = 0; // the offset of line i
  const step = () => { at += lines[i].length + 1; return lines[i++]; };
  const filled = () => i < lines.length && lines[i].trim() !== '';
  const table = () => {
    const sides = lines[i].includes('|') ? cells(lines[i + 1] ?? '') : [];
    return sides.length === cells(lines[i]).length && sides.every(side => /^:?-+:?$/.test(side));
  };
  const opens = () => [FENCE, HEADING, RULE, QUOTE, ITEM].some(form => form.test(lines[i])) || table();
  while (i < lines.length) {
    if (!filled()) { step(); continue; }
    const block = { kind: 'p', from: at, lines: [] };
    found.push(block);
    let match;
    if ((match = FENCE.exec(lines[i]))) {
      step();
      Object.assign(block, { kind: 'code', mark: match[1], name: match[2].trim().split(/\s/)[0], body: at });
      while (i < lines.length && !closes(lines[i], block.mark)) block.lines.push(step());
      block.closed = i < lines.length && !!step();
    } else if ((match = HEADING.exec(lines[i]))) {
      Object.assign(block, { kind: 'h' + Math.min(6, match[1].length + 2), lines: [match[2].trim()] });
      step();
    } else if (RULE.test(lines[i])) {
      block.kind = 'hr';
      step();
    } else if (QUOTE.test(lines[i])) {
      block.kind = 'blockquote';
      do block.lines.push(step().replace(QUOTE, '')); while (filled() && (QUOTE.test(lines[i]) || !opens()));
    } else if ((match = ITEM.exec(lines[i]))) {
      const ordered = /\d/.test(match[2]);
      Object.assign(block, { kind: ordered ? 'ol' : 'ul', start: parseInt(match[2], 10), items: [] });
      let item;
      let width = 0; // of the marker
      let blank = false; // the line before was
      while (i < lines.length) {
        if (filled() && !(item && indent(lines[i]) >= Math.min(width, match[1].length + 2))) {
          const next = RULE.test(lines[i]) ? null : ITEM.exec(lines[i]);
          if (next && next[2].at(-1) === match[2].at(-1)) {
            width = next[0].length;
            block.items.push(item = { from: at, lines: [step().slice(width)] });
            blank = false;
            continue;
          }
          if (blank || opens()) break;
        }
        blank = !filled();
        const line = step();
        item.lines.push(line.slice(Math.min(width, indent(line))));
      }
    } else if (table()) {
      block.kind = 'table';
      do block.lines.push(step()); while (filled() && lines[i].includes('|'));
    } else {
      do block.lines.push(step().trim()); while (filled() && !opens());
    }
  }
  return found;
}

const RIGHT_TO_LEFT = /^\P{L}*[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u;

/** Sets the direction that the text of `node` has; `dir=auto` would look through all of it again with each new child. */
function directed(node, text = node.textContent) {
  node.dir = RIGHT_TO_LEFT.test(text) ? 'rtl' : 'ltr';
  return node;
}

/** One block as a node; `depth` bounds what is nested in what. */
function build({ kind, name, start, items, lines }, depth = 0) {
  switch (kind) {
    case 'hr': return el('hr');
    case 'code': return codeBox(name, lines.join('\n'));
    case 'blockquote': return directed(fill(el(kind), lines, depth));
    case 'ul': case 'ol': {
      const list = el(kind, {}, ...items.map(item => listItem(item, depth)));
      if (kind === 'ol') list.start = start;
      return directed(list);
    }
    case 'table': {
      const sides = cells(lines[1]).map(cell => !cell.endsWith(':') ? '' : cell.startsWith(':') ? 'mid' : 'end');
      const row = (line, tag) => el('tr', {}, ...cells(line).slice(0, sides.length)
        .map((cell, i) => directed(inline(el(tag, { className: sides[i] }), cell))));
      return el('div', { className: 'table' }, el('table', {},
        el('thead', {}, row(lines[0], 'th')), el('tbody', {}, ...lines.slice(2).map(line => row(line, 'td')))));
    }
    default: return directed(inline(el(kind), lines.join('\n')));
  }
}

function fill(parent, lines, depth) {
  const text = lines.join('\n').trimEnd();
  parent.append(...depth > 8 ? [text] : blocks(text).map(block => build(block, depth + 1)));
  return parent;
}

function listItem({ lines }, depth) {
  const node = fill(el('li'), lines, depth);
  const first = node.firstChild;
  if (first?.tagName === 'P') first.replaceWith(...first.childNodes); // a short item needs no paragraph
  return node;
}

function codeBox(name, text) {
  const code = el('code', {}, document.createTextNode(text));
  return el('div', { className: 'code' },
    el('div', { className: 'code-head' }, el('span', {}, name), copyButton('Copy the code', () => code.textContent)),
    el('pre', { tabIndex: 0 }, code));
}

const SPECIAL = /[\\`*_[!]|https?:\/\//g;
const LINK = /!?\[([^[\]\n]{0,500})\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"\n]*")?\s*\)/y;
const URL_TEXT = /https?:\/\/[^\s<>"`|\\^{}\u3000-\u303f\uff00-\uffef]*[^\s<>"`|\\^{}\u3000-\u303f\uff00-\uffef.,;:!?'*_~()[\]]\/?/y;
const MARKS = /`+|\*+|_+/y;
const WORD = /[\p{L}\p{N}_]/u;

function sticky(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/** Appends `text` to `parent` with its emphasis, code and links; at depth 6, the label of a link, without links. */
function inline(parent, text, depth = 0) {
  let plain = '';
  for (let at = 0; at < text.length;) {
    const hit = depth > 6 ? null : sticky(SPECIAL, text, at);
    plain += text.slice(at, hit?.index ?? text.length);
    if (!hit) break;
    at = hit.index;
    const marks = sticky(MARKS, text, at)?.[0];
    const end = marks ? closer(text, at, marks) : -1;
    const match = depth > 5 ? null : sticky(LINK, text, at) ?? sticky(URL_TEXT, text, at);
    let node;
    let next = at + (marks?.length ?? 1);
    if (end >= 0) {
      const inner = text.slice(next, end);
      next = end + marks.length;
      if (marks[0] === '`') node = el('code', {}, /^ [^]* $/.test(inner) ? inner.slice(1, -1) : inner);
      else node = inline(el(marks.length === 2 ? 'strong' : 'em'), marks.length === 3 ? `**${inner}**` : inner, depth + 1);
    } else if (match) {
      node = match[1] === undefined ? link(match[0], match[0]) : link(match[2], inline(el('span'), match[1] || match[2], 6));
      next = at + match[0].length;
    }
    if (node) {
      parent.append(plain, node);
      plain = '';
    } else {
      if (text[at] === '\\' && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? '')) next = ++at + 1;
      plain += text.slice(at, next);
    }
    at = next;
  }
  parent.append(plain);
  return parent;
}

/** Where the run of marks at `at` is closed, or -1; of the next 40 runs, so that no text makes this slow. */
function closer(text, at, marks) {
  const [mark] = marks;
  const from = at + marks.length;
  const code = mark === '`';
  if (!code && (marks.length > 3 || !/\S/.test(text[from] ?? ''))) return -1;
  if (mark === '_' && WORD.test(text[at - 1] ?? '')) return -1;
  for (let end = from, tries = 0; tries < 40 && (end = text.indexOf(marks, end)) >= 0; tries++) {
    const { length } = sticky(MARKS, text, end)[0];
    const close = end + length - marks.length;
    const fits = length === marks.length || (!code && length === 3);
    if (fits && close > from && (code || (/\S/.test(text[end - 1]) && !(mark === '_' && WORD.test(text[end + length] ?? ''))))) return close;
    end += length;
  }
  return -1;
}

/** A link if it leads to http or https, otherwise its label. */
function link(address, label) {
  let url;
  try { url = new URL(address); } catch { return label; }
  if (!/^https?:$/.test(url.protocol)) return label;
  return el('a', { href: url.href, title: url.href, target: '_blank', rel: 'noopener noreferrer' }, label);
}

/**
 * Markdown that grows. Blocks and items of a list that can change no more stay; what comes after them is built anew, and
 * text inside a fence is appended: the work follows the length of the text and not its square.
 */
class Growing {
  constructor(root, onBlock) {
    Object.assign(this, { root, onBlock, tail: '', loose: [], list: null, fence: null });
  }

  push(text) { this.tail += text; }

  render(last = false) {
    if (this.fence && !this.pour(last)) return;
    for (const node of this.loose) node.remove();
    const { list } = this;
    this.loose = [];
    this.list = null;
    const found = blocks(this.tail);
    let settled = -1; // where the part of the tail begins that may change yet
    for (const [i, block] of found.entries()) {
      let node = list;
      if (i === 0 && list && block.items) {
        list.append(...block.items.map(item => listItem(item, 0)));
        directed(list, list.firstChild.textContent);
      } else {
        if (i === 0 && list && !list.firstChild) list.remove();
        node = this.root.appendChild(build(block));
      }
      // Only a whole line after it ends a block for certain.
      if (settled < 0 && (last || (found[i + 1] && this.tail.includes('\n', found[i + 1].from)))) {
        this.onBlock(node.textContent);
      } else if (settled >= 0) {
        this.loose.push(node);
      } else if (block.mark && !block.closed && block.body <= this.tail.length) {
        this.fence = { mark: block.mark, text: node.querySelector('code').firstChild };
        this.fence.text.data = '';
        this.tail = this.tail.slice(block.body);
        this.pour(last);
        return;
      } else {
        settled = block.items?.at(-1).from ?? block.from;
        if (block.items) this.list = node;
        this.loose.push(block.items ? node.lastChild : node);
      }
    }
    this.tail = settled < 0 ? '' : this.tail.slice(settled);
  }

  /** Moves whole lines into the open fence; true once it is closed. */
  pour(last) {
    const { mark, text } = this.fence;
    let at = 0;
    for (;;) {
      const end = this.tail.indexOf('\n', at);
      if (end < 0 && !last) break; // half a line may be the end of the fence
      const next = end < 0 ? this.tail.length : end + 1;
      const closed = closes(this.tail.slice(at, next), mark);
      if (closed || at === next) {
        text.appendData(this.tail.slice(0, at));
        text.data = text.data.replace(/\n$/, '');
        this.onBlock(text.data);
        this.fence = null;
        this.tail = this.tail.slice(next);
        return true;
      }
      at = next;
    }
    text.appendData(this.tail.slice(0, at));
    this.tail = this.tail.slice(at);
    return false;
  }
}

// ---- calls and their faults

/** What went wrong, as one line for a person. A `status` of 0: the server cannot be reached. */
class Fault extends Error {
  constructor(message, status = 0, after = 0) {
    super(String(message).replace(/\s+/g, ' ').slice(0, 400));
    Object.assign(this, { status, after }); // seconds that the server asks us to wait
  }
}

const pause = (ms, signal) => new Promise((done, fail) => {
  setTimeout(done, ms);
  signal?.addEventListener('abort', () => fail(signal.reason), { once: true });
});

/** A response, whatever its status. */
async function call(url, options = {}) {
  const headers = { ...options.headers, ...(secret && { Authorization: 'Bearer ' + secret }) };
  try {
    return await fetch(url, { ...options, headers, cache: 'no-store', credentials: 'omit' });
  } catch (error) {
    throw error.name === 'AbortError' ? error : new Fault('The server cannot be reached.');
  }
}

/** The response if it is a good one, otherwise a fault with what the server said. */
async function good(response) {
  if (response.ok) return response;
  const { status } = response;
  const said = await response.json().then(body => body.error?.message, () => null);
  throw new Fault(status === 401 ? `The server ${secret ? 'does not accept this' : 'asks for an'} API key.` : said ?? `The server answered with status ${status}.`,
    status, Number(response.headers.get('retry-after')));
}

/** The `data:` fields of a stream of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let data = [];
  try {
    for (let piece = {}; !piece.done;) {
      piece = await reader.read();
      const lines = (rest + (piece.value ?? '\n\n')).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith('data:')) data.push(line.slice(5));
        else if (!line && data.length) yield data.splice(0).join('\n').trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function showState(state, text) {
  $('state').dataset.state = state;
  $('state').textContent = text;
}


/** Waits until the server is ready; `tell` hears once a second what it says. */
async function untilReady(signal, tell = () => {}) {
  for (;;) {
    try {
      const response = await call('ready', { signal });
      return response.status === 404 || await good(response);
    } catch (fault) {
      if (fault.status !== 503) throw fault;
      showState('wait', 'loading');
      tell(fault.message);
    }
    await pause(1000, signal);
  }
}

async function loadModels(signal) {
  const { data } = await (await good(await call('v1/models', { signal }))).json();
  $('model').replaceChildren(...data.map(({ id }) => el('option', { selected: id === store.read('model', '') }, id)));
  $('model').disabled = data.length < 2;
  showState('ready', 'ready');
}

/** Finds the server and its models, however long that takes; false where it needs a key. */
async function connect() {
  showState('wait', 'connecting');
  for (;;) {
    try {
      await untilReady();
      await loadModels();
      return true;
    } catch (fault) {
      showState('fault', fault.status === 401 ? 'needs a key' : fault.status ? `status ${fault.status}` : 'cannot be reached');
      if (fault.status === 401) return askForKey(fault.message);
    }
    await pause(3000);
  }
}

// ---- one answer as it streams

const STOPPED = 'Stopped.';
const CUT = 'The connection ended before the answer was complete.';
let live = null; // {chat, node, asked, control, view, …} while an answer is on its way

/** Lets the model answer `asked`, a message of a person. */
async function answer(asked) {
  if (live) return;
  showFault();
  const node = add(chat, asked, { role: 'assistant', model: '', text: '', thought: '', calls: [] });
  const now = live = { chat, node, asked, control: new AbortController(), view: null, say: '', pieces: 0, begun: 0, first: 0, last: 0 };
  show();
  speak('Waiting for the answer.');
  const saving = setInterval(() => now.pieces && keep(now.chat), 2000);
  let fault = null;
  try {
    await insist(now);
  } catch (error) {
    fault = error;
    node.cut = error.name === 'AbortError' ? STOPPED : error instanceof Fault ? error.message : 'The answer could not be read.';
  }
  clearInterval(saving);
  live = null;
  if (now.first) Object.assign(node.stats ??= {}, { first: now.first - now.begun, took: now.last - now.first, pieces: now.pieces });
  const nothing = fault && !now.pieces;
  if (nothing) drop(now.chat, node);
  if (now.chat === chat) {
    now.view.finish();
    if (nothing) showFault(node.cut, asked);
    show();
  }
  if (index.some(({ id }) => id === now.chat.id)) keep(now.chat);
  if (fault?.status === 401) askForKey(fault.message);
  speak(nothing ? '' : node.cut ?? 'The answer is complete.');
}

/** Tries again while the server says that it is busy or not ready and nothing has come yet. */
async function insist(now) {
  const { signal } = now.control;
  for (let tries = 1; ; tries++) {
    try {
      if (!$('model').value) await loadModels(signal);
      now.node.model = $('model').value;
      return await stream(now);
    } catch (fault) {
      let wait = Math.ceil(Math.max(1, fault.after || 2 ** tries));
      if (now.pieces || tries > 8 || ![429, 503].includes(fault.status) || wait > 120) throw fault;
      if (fault.status === 503) {
        await untilReady(signal, said => tell(now, `The server is not ready: ${said}`));
        wait = tries - 1;
      }
      for (; wait > 0; wait--) {
        tell(now, `${fault.message.replace(/\.?$/, '.')} Trying again in ${wait} s.`);
        await pause(1000, signal);
      }
      tell(now, '');
    }
  }
}

function tell(now, say) {
  now.say = say;
  now.view?.changed();
}

async function stream(now) {
  const { node } = now;
  now.begun = performance.now();
  const response = await good(await call('v1/chat/completions', {
    method: 'POST',
    signal: now.control.signal,
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({
      model: node.model, messages: transcript(now.chat, now.asked), stream: true, stream_options: { include_usage: true }, ...sampling(),
    }),
  }));
  showState('ready', 'ready');
  let whole = false;
  try {
    for await (const data of events(response.body)) {
      if (data === '[DONE]') { whole = true; break; }
      const { error, usage, choices } = JSON.parse(data);
      if (error) throw new Fault(error.message ?? error, 500);
      if (usage) node.stats = { prompt: usage.prompt_tokens, cached: usage.prompt_tokens_details?.cached_tokens, tokens: usage.completion_tokens };
      if (choices?.[0]) whole = take(now, choices[0]) || whole;
    }
  } catch (error) {
    if (error.name === 'AbortError' || error instanceof Fault) throw error;
    throw new Fault(error instanceof SyntaxError ? 'The server sent something that is not JSON.' : CUT);
  }
  if (!whole) throw new Fault(CUT);
}

/** Adds one piece to the answer; whether it was the last. */
function take(now, { delta = {}, finish_reason: finish }) {
  const { node } = now;
  const text = delta.content ?? '';
  const thought = delta.reasoning_content ?? delta.reasoning ?? '';
  for (const part of delta.tool_calls ?? []) {
    const known = node.calls[part.index ?? 0] ??= { id: '', name: '', args: '' };
    known.id ||= part.id ?? '';
    known.name += part.function?.name ?? '';
    known.args += part.function?.arguments ?? '';
  }
  node.text += text;
  node.thought += thought;
  if (text || thought || delta.tool_calls?.length) {
    now.last = performance.now();
    now.first ||= now.last;
    now.pieces += 1;
    now.view.push(text);
  }
  if (finish === 'length') node.cut = 'Cut at the longest answer allowed.';
  return finish != null;
}

// ---- the conversation on screen

let views = []; // one a message on show, in order

/** Brings the screen in step with the chat; messages that stay keep their nodes. */
function show(following = true) {
  const nodes = path(chat);
  let same = 0;
  while (same < nodes.length && views[same]?.node === nodes[same]) same++;
  for (const view of views.splice(same)) view.root.remove();
  for (const node of nodes.slice(same)) {
    const view = node.role === 'user' ? askedView(node) : answerView(node);
    $('talk').append(view.root);
    views.push(view);
  }
  for (const view of views) view.changed();
  $('hello').hidden = nodes.length > 0;
  $('send').ariaLabel = live ? 'Stop' : 'Send';
  setIcon($('send'), live ? 'stop' : 'send');
  setSend();
  if (!live && nodes.at(-1)?.role === 'user' && $('fault').hidden) showFault('This message has no answer yet.', nodes.at(-1));
  follow(following);
}

const setSend = () => { $('send').disabled = !live && !$('say').value.trim(); };

/** ‹ 2/3 ›, where a message has other versions. */
function versions(node) {
  const parent = above(chat, node);
  if (parent.kids.length < 2) return '';
  const turn = (by, name, label) => {
    const button = iconButton(name, label, () => {
      parent.pick += by;
      keep(chat);
      showFault();
      const place = views.findIndex(view => view.node === node);
      show(false);
      views[place].root.querySelector(`[aria-label="${label}"]:enabled, .which button:enabled`).focus();
    });
    button.disabled = live || !parent.kids[parent.pick + by];
    return button;
  };
  return el('span', { className: 'which' }, turn(-1, 'prev', 'Earlier version'), `${parent.pick + 1}/${parent.kids.length}`, turn(1, 'next', 'Later version'));
}

/** Renews what a foot holds, and leaves the keyboard where it was. */
function setFoot(foot, ...children) {
  const held = foot.contains(document.activeElement) && document.activeElement.ariaLabel;
  foot.replaceChildren(...children);
  if (held) (foot.querySelector(`[aria-label="${held}"]`) ?? $('scroll')).focus({ preventScroll: true });
}

function askedView(node) {
  const said = el('div', { className: 'said', dir: 'auto' }, node.text);
  const foot = el('div', { className: 'foot' });
  const root = el('article', { className: 'turn asked', ariaLabel: 'You' }, said, foot);
  const edit = () => {
    const box = el('textarea', { value: node.text, dir: 'auto', ariaLabel: 'Edit your message' });
    const close = () => {
      root.replaceChildren(said, foot);
      foot.lastChild.focus();
    };
    const save = () => {
      const text = box.value.trim();
      if (!text || live || !settingsHold()) return;
      close();
      ask(text, chat.nodes[node.up]);
    };
    box.onkeydown = event => {
      if (event.key === 'Escape' && !event.isComposing) { event.stopPropagation(); close(); }
      if (sends(event)) { event.preventDefault(); save(); }
    };
    box.oninput = () => fit(box);
    root.replaceChildren(el('div', { className: 'editor' }, box,
      el('div', { className: 'row' }, plainButton('Cancel', close), plainButton('Send', save))));
    fit(box);
    box.focus();
  };
  const changed = () => {
    const button = iconButton('edit', 'Edit', edit);
    button.disabled = live;
    setFoot(foot, versions(node), copyButton('Copy', () => node.text), button);
  };
  return { node, root, changed, edit };
}

function answerView(node) {
  const now = live?.node === node ? live : null;
  const text = el('div', { className: 'text' });
  const growing = new Growing(text, said => now && speak(said));
  const thought = document.createTextNode('');
  const folded = el('summary');
  const thinking = el('details', { className: 'thought' }, folded, el('div', { dir: 'auto' }, thought));
  const calls = el('div');
  const waiting = el('div', { className: 'wait', ariaHidden: 'true' }, el('i'), el('i'), el('i'));
  const foot = el('div', { className: 'foot' });
  const by = el('p', { className: 'by' });
  const root = el('article', { className: 'turn answer', ariaLabel: 'Answer' },
    by, thinking, text, calls, waiting, foot);
  const busy = () => live?.node === node;

  const draw = () => {
    growing.render(!busy());
    by.textContent = node.model;
    thought.appendData(node.thought.slice(thought.length));
    thinking.hidden = !node.thought;
    folded.textContent = busy() && !node.text ? 'Thinking…' : 'Thoughts before the answer';
    calls.replaceChildren(...node.calls.filter(Boolean).map(callBox));
    waiting.hidden = !busy() || node.text !== '';
    root.ariaBusy = String(busy());
    if (busy()) {
      foot.replaceChildren(el('span', {}, live.say || (live.pieces > 4 ? speedOf(live.pieces, live.last - live.first, '≈ ') : '')));
    } else {
      const button = iconButton('redo', 'Regenerate', () => regenerate(node));
      button.disabled = live;
      setFoot(foot, versions(node), copyButton('Copy', () => node.text), button,
        el('span', {}, statsOf(node)), el('span', { className: node.cut === STOPPED ? '' : 'cut' }, node.cut ?? ''));
    }
  };

  // At most one drawing a frame; and where the last block has no end and costs more each time, fewer drawings.
  let asleep = true;
  let notBefore = 0;
  const frame = begun => {
    if (busy() && begun < notBefore) return void requestAnimationFrame(frame);
    asleep = true;
    if (!busy()) return;
    draw();
    follow();
    const ended = performance.now();
    notBefore = ended + 5 * (ended - begun);
  };
  const changed = () => {
    if (!busy()) draw();
    else if (asleep) asleep = !requestAnimationFrame(frame);
  };
  growing.push(node.text);
  if (now) now.view = { changed, finish: draw, push(piece) { growing.push(piece); changed(); } };
  draw();
  return { node, root, changed };
}

const callBox = ({ name, args }) =>
  el('div', { className: 'call' }, el('p', {}, 'Calls the tool ', el('b', {}, name)), el('pre', {}, args));

const figure = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });

/** `128 tokens · 31.4 tokens/s`; pieces, where the server has not counted, are an estimate. */
function speedOf(tokens, ms, about = '') {
  const speed = tokens > 1 && ms > 0 ? ` · ${about}${figure.format((tokens - 1) / ms * 1000)} tokens/s` : '';
  return `${about}${tokens} token${tokens === 1 ? '' : 's'}${speed}`;
}

function statsOf({ stats: { tokens, prompt, cached, pieces, first, took } = {} }) {
  if (!pieces) return '';
  return (tokens >= 0 ? speedOf(tokens, took) : speedOf(pieces, took, '≈ ')) + ` · first after ${figure.format(first / 1000)} s` +
    (prompt >= 0 ? ` · prompt ${prompt}` : '') + (cached ? ` (${cached} cached)` : '');
}

function copyButton(label, text) {
  const button = iconButton('copy', label, async () => {
    const done = await copy(text());
    if (done) setIcon(button, 'check');
    speak(done ? 'Copied.' : 'The browser does not allow copying.');
    setTimeout(() => setIcon(button, 'copy'), 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { /* not a secure context: the old way */ }
  const before = document.activeElement;
  const box = el('textarea', { value: text, className: 'sr' });
  document.body.append(box);
  box.select();
  const done = document.execCommand('copy');
  box.remove();
  before.focus();
  return done;
}

let pinned = true; // the newest text stays in sight; scrolling up lets go of it

const isAtEnd = () => $('scroll').scrollHeight - $('scroll').scrollTop - $('scroll').clientHeight < 60;

function follow(pin = pinned) {
  pinned = pin;
  if (pinned) $('scroll').scrollTop = $('scroll').scrollHeight;
  $('latest').hidden = pinned || isAtEnd();
}

/** Says something to a screen reader. */
function speak(text) {
  if (text) $('spoken').append(el('p', {}, text.slice(0, 2000)));
  if ($('spoken').childElementCount > 12) $('spoken').firstChild.remove();
}

/** One line at the end of the conversation with a way to try again; without a text, none. */
function showFault(text = '', asked = null) {
  $('fault').hidden = !text;
  $('fault').replaceChildren(el('span', {}, text), plainButton('Try again', () => { answer(asked); home(); }));
}

/** One line above the message box, with at most one thing to do. */
function notice(text, label, action) {
  const close = () => { $('notice').hidden = true; };
  const button = label ? plainButton(label, () => { close(); action(); }) : '';
  $('notice').replaceChildren(el('span', {}, text), button, iconButton('close', 'Close', close));
  $('notice').hidden = false;
}

// ---- what a person can do

function ask(text, up) {
  chat.title ||= text.replace(/\s+/g, ' ').slice(0, 60);
  const asked = add(chat, up, { role: 'user', text });
  keep(chat);
  answer(asked);
  home();
}

function regenerate(node) {
  if (live || !node || !settingsHold()) return;
  answer(chat.nodes[node.up]);
  home();
}

const stop = () => live?.control.abort();

/** The keyboard goes back to the message box, unless that would bring up a phone's own keyboard. */
const home = () => (matchMedia('(pointer: coarse)').matches ? $('scroll') : $('say')).focus({ preventScroll: true });

/** Opens a chat, or an empty one. */
function openChat(id) {
  chat = chatOf(id) ?? freshChat();
  store.write('here', chat.id);
  for (const view of views.splice(0)) view.root.remove();
  $('system').value = chat.system;
  showFault();
  show();
  showList();
}

function visit(id) {
  $('notice').hidden = true;
  openChat(id);
  if (narrow.matches) panel('chats', false);
  home();
}

function deleteChat(id) {
  if (live?.chat.id === id) stop();
  const gone = chatOf(id);
  index = store.read('chats', index).filter(entry => entry.id !== id);
  store.write('chats', index);
  store.write('chat.' + id);
  if (chat.id === id) openChat(index[0]?.id);
  else showList();
  $('new').focus();
  if (gone) notice(`“${gone.title}” is deleted.`, 'Undo', () => { keep(gone); openChat(gone.id); });
}

function renameChat(id, row) {
  const named = chatOf(id);
  if (!named) return;
  const box = el('input', { value: named.title, dir: 'auto', ariaLabel: 'Name of the chat' });
  const close = title => {
    box.onblur = null;
    if (title) {
      named.title = title;
      keep(named);
    } else showList();
    $('list').querySelector(`[data-id="${id}"] .open`).focus();
  };
  box.onkeydown = event => {
    if (sends(event)) close(box.value.trim());
    if (event.key === 'Escape') { event.stopPropagation(); close(''); }
  };
  box.onblur = () => close(box.value.trim());
  row.replaceChildren(box);
  box.select();
}

function showList() {
  document.title = chat.title ? `${chat.title} · ernie` : 'ernie';
  const held = $('list').contains(document.activeElement) && document.activeElement.closest('li').dataset.id;
  $('list').replaceChildren(...index.map(({ id, title }) => {
    const here = id === chat.id;
    const row = el('li', { className: here ? 'here' : '', 'data-id': id },
      el('button', { type: 'button', className: 'open', title, dir: 'auto', ariaCurrent: String(here), onclick: () => visit(id) }, title),
      iconButton('edit', `Rename ${title}`, () => renameChat(id, row)),
      iconButton('trash', `Delete ${title}`, () => deleteChat(id)));
    return row;
  }));
  if (held) $('list').querySelector(`[data-id="${held}"] .open`)?.focus();
  $('export-all').hidden = !index.length;
}

// ---- panels, keys, the start

const narrow = matchMedia('(max-width: 900px)');
const isOpen = name => document.body.classList.contains('with-' + name);

/** Opens or closes `chats` or `settings`; on a narrow screen an open one holds the keyboard. */
function panel(name, open, focus = true) {
  if (open && narrow.matches) panel(name === 'chats' ? 'settings' : 'chats', false, false);
  document.body.classList.toggle('with-' + name, open);
  $('toggle-' + name).ariaExpanded = String(open);
  $('middle').inert = narrow.matches && (isOpen('chats') || isOpen('settings'));
  if (focus) $(!open ? 'toggle-' + name : narrow.matches ? 'close-' + name : name === 'chats' ? 'new' : 'system').focus();
}

function closeDrawers() {
  panel('chats', false, false);
  panel('settings', false, false);
}

function askForKey(why) {
  panel('settings', true, false);
  $('key').focus();
  notice(why + ' Enter it under “API key”.');
  return false;
}

const field = name => document.querySelector(`#sampling [name=${name}]`);
const fields = () => [...document.querySelectorAll('#sampling [name]')];

/** The sampling panel as fields of a request; what is empty is left to the server. */
function sampling() {
  const asked = Object.fromEntries(fields().filter(({ name, value }) => name !== 'stop' && value).map(({ name, value }) => [name, +value]));
  const stop = field('stop').value.split('\n').map(line => line.replaceAll('\\n', '\n')).filter(Boolean);
  return stop.length ? { ...asked, stop } : asked;
}

/** Whether the sampling panel may be sent; if not, shows where it may not. */
function settingsHold() {
  const wrong = fields().find(input => !input.checkValidity());
  if (!wrong) return true;
  panel('settings', true, false);
  wrong.focus();
  notice(`${wrong.parentNode.firstChild.data.trim()}: ${wrong.validationMessage}`);
  return false;
}

function keepSampling() {
  for (const input of fields()) input.ariaInvalid = String(!input.checkValidity());
  store.write('sampling', Object.fromEntries(fields().map(({ name, value }) => [name, value])));
}

/** Makes a box as high as its text. */
function fit(box) {
  box.style.height = 'auto';
  box.style.height = box.scrollHeight + 2 + 'px';
}

/** Whether a key press sends: Enter alone, and not the one that ends a word of an input method. */
const sends = ({ key, keyCode, shiftKey, altKey, ctrlKey, metaKey, isComposing }) =>
  key === 'Enter' && !(shiftKey || altKey || ctrlKey || metaKey || isComposing || keyCode === 229);

const SHORTCUTS = {
  KeyN: () => visit(),
  KeyR: () => regenerate(path(chat).findLast(({ role }) => role === 'assistant')),
  KeyL: () => panel('chats', !isOpen('chats')),
  KeyS: () => panel('settings', !isOpen('settings')),
  KeyK: () => $('keys').open ? $('keys').close() : $('keys').showModal(),
};

function onKey(event) {
  const { altKey, ctrlKey, metaKey, shiftKey, code, key } = event;
  if (altKey && !(ctrlKey || metaKey || shiftKey) && SHORTCUTS[code]) {
    event.preventDefault();
    SHORTCUTS[code]();
  } else if (key === 'Escape' && !event.isComposing && !$('keys').open) {
    const name = ['chats', 'settings'].find(isOpen);
    if (narrow.matches && name) panel(name, false);
    else if (live) stop();
    else if ($('settings').contains(document.activeElement)) panel('settings', false);
  }
}

function submit() {
  const text = $('say').value.trim();
  if (!text || live || !settingsHold()) return;
  $('notice').hidden = true;
  $('say').value = '';
  fit($('say'));
  ask(text, path(chat).at(-1));
}

function start() {
  const setTheme = wanted => {
    theme = ['light', 'dark'].includes(wanted) ? wanted : 'auto';
    store.write('theme', theme);
    showTheme();
    $('theme').title = $('theme').ariaLabel = `Theme: ${theme === 'auto' ? 'as the system' : theme}`;
    setIcon($('theme'), theme);
  };
  setTheme(theme);
  $('theme').onclick = () => setTheme({ auto: 'light', light: 'dark' }[theme]);

  $('composer').onsubmit = event => { event.preventDefault(); (live ? stop : submit)(); };
  $('say').oninput = () => { fit($('say')); setSend(); };
  $('say').onkeydown = event => {
    const last = views.findLast(view => view.edit);
    if (sends(event)) { event.preventDefault(); submit(); }
    if (event.key === 'ArrowUp' && !$('say').value && !live && last) { event.preventDefault(); last.edit(); }
  };
  $('scroll').onscroll = () => {
    pinned = isAtEnd();
    $('latest').hidden = pinned;
  };
  $('latest').onclick = () => { follow(true); home(); };

  $('new').onclick = () => visit();
  $('export-all').onclick = () => download(index.map(({ id }) => chatOf(id)).filter(Boolean));
  for (const name of ['chats', 'settings']) {
    $('toggle-' + name).onclick = () => panel(name, !isOpen(name));
    $('close-' + name).onclick = () => panel(name, false);
  }
  $('scrim').onclick = closeDrawers;
  $('help').onclick = SHORTCUTS.KeyK;
  $('close-keys').onclick = () => $('keys').close();
  document.addEventListener('keydown', onKey);

  $('system').onchange = () => {
    chat.system = $('system').value;
    store.write('system', chat.system);
    if (chat.kids.length) keep(chat);
  };
  const kept = store.read('sampling', {});
  for (const input of fields()) input.value = kept[input.name] ?? '';
  $('sampling').oninput = keepSampling;
  $('reset').onclick = () => {
    for (const input of fields()) input.value = '';
    keepSampling();
  };
  $('key').value = secret;
  $('keep-key').checked = secret !== '';
  const keepKey = () => session.write('key', $('keep-key').checked && secret ? secret : undefined);
  $('keep-key').onchange = keepKey;
  $('key-form').onsubmit = async event => {
    event.preventDefault();
    secret = $('key').value.trim();
    keepKey();
    $('notice').hidden = true;
    if (!await connect()) return;
    if (narrow.matches) closeDrawers();
    const last = path(chat).at(-1);
    if (last?.role === 'user') answer(last); // which the missing key held up
    home();
  };
  $('model').onchange = () => store.write('model', $('model').value);

  index = store.read('chats', []).filter(entry => entry?.id);
  openChat(index.find(({ id }) => id === store.read('here', ''))?.id);
  const layOut = () => {
    closeDrawers();
    panel('chats', !narrow.matches, false);
  };
  narrow.onchange = layOut;
  layOut();
  home();

  new ResizeObserver(() => follow()).observe($('scroll'));
  connect();
}

document.addEventListener('DOMContentLoaded', start);
