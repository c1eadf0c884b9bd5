// The marked text: convert Python's offsets to JavaScript's, split a long text into chunks, draw its entities as <mark>s.
// Text goes into the page as text nodes only.

const HUES = 10; // of marks.css
const CHUNK = 2000; // units of UTF-16, at most
const LONG = 150; // a span of so many units or more is tinted and bracketed: underlines would fill the lines
const LANE = 9; // pixels between the brackets of nested long spans

// Python counts code points, JavaScript counts units of UTF-16. Returns a function from the first to the second.
function utf16Offsets(text) {
  const pairs = []; // code points that take two units
  for (let unit = 0, point = 0; unit < text.length; unit++, point++) {
    if (text.codePointAt(unit) > 0xffff) {
      pairs.push(point);
      unit++;
    }
  }
  return (position) => {
    let low = 0;
    let high = pairs.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (pairs[middle] < position) low = middle + 1;
      else high = middle;
    }
    return position + low;
  };
}

// The units at which the chunks of a text begin: after a line end if there is one, else after a sentence or a word, else
// anywhere but within a character or a CR LF.
function chunkStarts(text) {
  const starts = [0];
  for (let start = 0; text.length - start > CHUNK; starts.push(start)) {
    const chunk = text.slice(start, start + CHUNK);
    const ends = ["\n", "\u3002", ". ", " "].map((mark) => [chunk.lastIndexOf(mark), mark.length]);
    const [at, length] = ends.find(([at]) => at > CHUNK / 4) ?? [CHUNK, 0];
    start += at + length;
    const split = text.codePointAt(start - 1) > 0xffff || (text[start - 1] === "\r" && text[start] === "\n");
    start -= split ? 1 : 0;
  }
  return starts;
}

// Sort entities so that an entity comes before those that it contains.
function outermostFirst(entities) {
  return [...entities].sort((a, b) => a.begin - b.begin || b.stop - a.stop || a.label - b.label);
}

// Units [from, to) of the text as nodes, with the entities as nested <mark>s. `entities`: those that overlap these units,
// outermost first, no two of them crossing. `begin` and `stop` of an entity count units.
function markUp(text, from, to, entities, labels, current) {
  const root = document.createDocumentFragment();
  const open = [{ node: root, end: to, level: 0 }];
  let at = from;

  function addText(end) {
    for (const line of text.slice(at, end).split(/(?<=\r)(?!\n)/)) {
      at += line.length;
      if (line) open.at(-1).node.append(line);
      if (line.endsWith("\r") && text[at] !== "\n") open.at(-1).node.append(document.createElement("br"));
    }
  }
  function close(position) {
    while (open.length > 1 && open.at(-1).end <= position) {
      addText(open.at(-1).end);
      const { node, level } = open.pop();
      node.style.setProperty("--level", level);
      if (!node.classList.contains("long")) open.at(-1).level = Math.max(open.at(-1).level, level + 1);
    }
  }

  for (const entity of entities) {
    const begin = Math.max(entity.begin, from);
    close(begin);
    addText(begin);
    const node = document.createElement("mark");
    const long = isLong(entity);
    node.className = `${long ? "long" : "short"} hue-${entity.label % HUES}`;
    if (long ? entity.begin >= from : entity.stop <= to) node.dataset.label = labels[entity.label];
    node.dataset.number = entity.number;
    node.title = `${labels[entity.label]} ${entity.score.toFixed(2)}`;
    node.classList.toggle("current", entity.number === current);
    open.at(-1).node.append(node);
    open.push({ node, end: Math.min(entity.stop, open.at(-1).end), level: 1 });
  }
  close(to);
  addText(to);
  return root;
}

function isLong({ begin, stop }) {
  return stop - begin >= LONG;
}

// The deepest nesting among the entities, which come outermost first; 1 if none lies in another.
function nestingDepth(entities) {
  const ends = [];
  let depth = 0;
  for (const { begin, stop } of entities) {
    while (ends.length && ends.at(-1) <= begin) ends.pop();
    depth = Math.max(depth, ends.push(stop));
  }
  return depth;
}

// The text in chunks. A chunk is filled when it comes into sight and emptied when it leaves: the page stays small.
class TextView {
  constructor(box) {
    this.box = box;
    const onSeen = (entries) => this.steadily(() => entries.forEach((entry) => this.onSeen(entry)));
    this.observer = new IntersectionObserver(onSeen, { root: box, rootMargin: "1000px 0px" });
    new ResizeObserver(() => this.chunks?.forEach((chunk) => this.drawBrackets(chunk))).observe(box);
  }

  show(text, labels) {
    Object.assign(this, { text, labels, starts: chunkStarts(text), current: null });
    this.observer.disconnect();
    this.chunks = this.starts.map((start, index) => {
      const chunk = document.createElement("div");
      chunk.dataset.index = index;
      const characters = (this.starts[index + 1] ?? text.length) - start;
      chunk.style.height = `${Math.ceil(characters / 80) * 2}em`; // until it has been seen
      return chunk;
    });
    this.box.replaceChildren(...this.chunks);
    this.box.scrollTop = 0;
    this.mark([]);
    this.fill(0); // at once: the observer calls back later
    this.chunks.forEach((chunk) => this.observer.observe(chunk));
  }

  mark(unordered) {
    const entities = outermostFirst(unordered);
    this.numbered = new Map(entities.map((entity) => [entity.number, entity]));
    this.byChunk = this.chunks.map(() => []);
    for (const entity of entities) {
      const last = this.chunkOf(entity.stop - 1);
      for (let index = this.chunkOf(entity.begin); index <= last; index++) this.byChunk[index].push(entity);
    }
    this.box.style.setProperty("--depth", Math.max(1, nestingDepth(entities.filter((entity) => !isLong(entity)))));
    this.lanes = nestingDepth(entities.filter(isLong));
    this.box.style.setProperty("--gutter", `${this.lanes * LANE}px`);
    this.steadily(() => this.chunks.forEach((chunk, index) => chunk.hasChildNodes() && this.fill(index)));
  }

  // Make a change of heights without moving the visible text. Browsers do so by themselves only if just chunks above it
  // change.
  steadily(change) {
    const top = (chunk) => chunk.getBoundingClientRect().top;
    const first = this.chunks.findLast((chunk) => top(chunk) <= top(this.box)) ?? this.chunks[0];
    const before = top(first);
    change();
    this.box.scrollTop += top(first) - before;
  }

  chunkOf(unit) {
    let low = 0;
    for (let high = this.starts.length; high - low > 1; ) {
      const middle = (low + high) >> 1;
      if (this.starts[middle] <= unit) low = middle;
      else high = middle;
    }
    return low;
  }

  onSeen({ target, isIntersecting }) {
    if (isIntersecting) {
      if (!target.hasChildNodes()) this.fill(Number(target.dataset.index));
    } else if (target.hasChildNodes()) {
      target.style.height = `${target.offsetHeight}px`;
      target.replaceChildren();
    }
  }

  fill(index) {
    const chunk = this.chunks[index];
    if (!chunk) return;
    const end = this.starts[index + 1] ?? this.text.length;
    const nodes = markUp(this.text, this.starts[index], end, this.byChunk[index], this.labels, this.current);
    chunk.style.height = "";
    chunk.replaceChildren(nodes);
    this.drawBrackets(chunk);
  }

  // Draw a bracket in the margin beside each long span of a chunk, from its first line to its last.
  drawBrackets(chunk) {
    chunk.querySelectorAll(".bracket").forEach((bracket) => bracket.remove());
    const top = chunk.getBoundingClientRect().top;
    const brackets = [...chunk.querySelectorAll("mark.long")].flatMap((mark) => {
      const lines = [...mark.getClientRects()];
      if (!lines.length) return []; // hidden, or a line end alone
      const [first, last] = [Math.min(...lines.map((line) => line.top)), Math.max(...lines.map((line) => line.bottom))];
      const entity = this.numbered.get(Number(mark.dataset.number));
      const bracket = document.createElement("i");
      bracket.className = `bracket ${mark.className.replace("long ", "")}`;
      bracket.dataset.number = entity.number;
      bracket.classList.toggle("from-above", entity.begin < this.starts[chunk.dataset.index]);
      bracket.classList.toggle("goes-on", entity.stop > (this.starts[Number(chunk.dataset.index) + 1] ?? Infinity));
      let lane = 0;
      for (let outer = mark.parentElement; outer !== chunk; outer = outer.parentElement) lane++;
      Object.assign(bracket.style, {
        top: `${first - top}px`,
        height: `${last - first}px`,
        left: `${-(this.lanes - lane) * LANE - 5}px`,
      });
      return bracket;
    });
    chunk.append(...brackets);
  }

  goTo(entity) {
    this.current = entity.number;
    this.box.querySelectorAll(".current").forEach((mark) => mark.classList.remove("current"));
    const index = this.chunkOf(entity.begin);
    // The chunks around it are filled first: the heights of chunks never filled are guesses.
    for (const near of [index - 2, index - 1, index, index + 1, index + 2]) this.fill(near);
    const mark = this.chunks[index].querySelector(`mark[data-number="${entity.number}"]`);
    mark.scrollIntoView({ block: isLong(entity) ? "start" : "center" });
  }
}
