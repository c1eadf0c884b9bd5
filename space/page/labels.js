// The list of labels by group. Each label has the number of its spans, a switch, and its spans as links into the text.
// A search looks through names and spans. Labels without a span are named at the end.

const OPEN = 10; // a label with up to so many spans is open at first; others show so many when opened
const MORE = 50; // spans that are added at a time
const EXCERPT = 300; // characters of a span

class LabelList {
  // `toggle(labels, shown)` shows or hides labels in the text, `jump(entity)` scrolls to an entity.
  constructor(root, toggle, jump) {
    Object.assign(this, { root, toggle, jump });
    this.list = root.querySelector(".labels-list");
    this.search = root.querySelector("input[type=search]");
    this.search.addEventListener("input", () => {
      this.draw();
      this.list.scrollTop = 0;
    });
    root.querySelector(".all").addEventListener("click", () => toggle(this.labels.keys(), true));
    root.querySelector(".none").addEventListener("click", () => toggle(this.labels.keys(), false));
  }

  // Begin with a new text. Labels of no group make one of their own.
  show(labels, groups) {
    const known = new Map(labels.map((name, label) => [name, label]));
    const grouped = groups.map(([name, members]) => [name, members.filter((each) => known.has(each)).map((each) => known.get(each))]);
    const rest = [...labels.keys()].filter((label) => !grouped.some(([, members]) => members.includes(label)));
    this.groups = [...grouped, [grouped.length ? "Other" : "", rest]].filter(([, members]) => members.length);
    Object.assign(this, { labels, opened: new Map(), limits: new Map(), current: null });
    this.search.value = "";
    this.list.scrollTop = 0;
  }

  // `accepted`: the spans in text order, those of hidden labels too.
  fill(accepted, hidden) {
    this.hidden = hidden;
    this.spans = this.labels.map(() => []);
    for (const entity of accepted) this.spans[entity.label].push(entity);
    this.draw();
  }

  draw() {
    const query = this.search.value.trim().toLowerCase();
    const holds = (text) => text.toLowerCase().includes(query);
    const matching = this.labels.map((name, label) =>
      holds(name) ? this.spans[label] : this.spans[label].filter(({ text }) => holds(text)),
    );
    this.most = Math.max(1, ...this.spans.map((spans) => spans.length));
    const sections = this.groups.map(([name, members]) => this.section(name, members, matching, query));
    const absent = this.groups.flatMap(([, members]) => members).filter((label) => !this.spans[label].length && holds(this.labels[label]));
    const nodes = [...sections.filter(Boolean), ...(absent.length ? [this.absent(absent)] : [])];
    this.list.replaceChildren(...(nodes.length ? nodes : [make("p", "nothing", `No label and no span has \u201c${query}\u201d.`)]));
  }

  section(name, members, matching, query) {
    const there = members.filter((label) => matching[label].length);
    if (!there.length) return null;
    const section = make("section", "group");
    if (name) {
      const head = make("h4", "", name);
      head.append(make("span", "count", NUMBER.format(there.reduce((sum, label) => sum + matching[label].length, 0))));
      section.append(head);
    }
    const list = make("ul", "");
    list.append(...there.map((label) => this.label(label, matching[label], query)));
    section.append(list);
    return section;
  }

  label(label, spans, query) {
    const name = this.labels[label];
    const item = make("li", `label hue-${label % HUES}`);
    item.dataset.label = label;
    item.classList.toggle("off", this.hidden.has(label));
    const box = make("input", "");
    Object.assign(box, { type: "checkbox", checked: !this.hidden.has(label), ariaLabel: `Show ${name}` });
    box.addEventListener("change", () => {
      this.toggle([label], box.checked);
      this.focus(label, "input");
    });
    const open = query ? true : (this.opened.get(label) ?? spans.length <= OPEN);
    const head = make("button", "label-head");
    Object.assign(head, { type: "button", ariaExpanded: open });
    const bar = make("span", "count-bar");
    bar.append(make("span", ""));
    bar.firstChild.style.width = `${(100 * spans.length) / this.most}%`;
    head.append(make("span", "label-name", name), bar, make("span", "count", NUMBER.format(spans.length)));
    head.addEventListener("click", () => {
      this.opened.set(label, !open);
      this.draw();
      this.focus(label, ".label-head");
    });
    const row = make("div", "label-row");
    row.append(box, head);
    item.append(row);
    if (open) item.append(this.spansOf(label, spans));
    return item;
  }

  spansOf(label, spans) {
    const list = make("ol", "spans");
    const limit = this.limits.get(label) ?? OPEN;
    list.append(...spans.slice(0, limit).map((entity) => this.span(entity)));
    if (spans.length > limit) {
      const item = make("li", "");
      const more = make("button", "plain more", `${NUMBER.format(Math.min(MORE, spans.length - limit))} more`);
      more.type = "button";
      more.addEventListener("click", () => {
        this.limits.set(label, limit + MORE);
        this.draw();
        this.focus(label, `.spans li:nth-child(${limit + 1}) button`);
      });
      item.append(more);
      list.append(item);
    }
    return list;
  }

  span(entity) {
    const item = make("li", "");
    const button = make("button", "span");
    Object.assign(button, { type: "button", title: "Show in the text", ariaCurrent: entity.number === this.current });
    const text = entity.text.length > EXCERPT ? `${entity.text.slice(0, EXCERPT)}\u2026` : entity.text;
    button.append(make("bdi", "", text), make("span", "score", entity.score.toFixed(2)));
    button.addEventListener("click", () => {
      this.current = entity.number;
      this.list.querySelectorAll(".span").forEach((other) => (other.ariaCurrent = other === button));
      this.jump(entity);
    });
    item.append(button);
    return item;
  }

  absent(labels) {
    const section = make("section", "group absent");
    const head = make("h4", "", "Not found in this text");
    head.append(make("span", "count", NUMBER.format(labels.length)));
    const list = make("ul", "");
    list.append(...labels.map((label) => make("li", "", this.labels[label])));
    section.append(head, list);
    return section;
  }

  // Drawing the list anew loses the keyboard's focus: put it back on the same element.
  focus(label, selector) {
    this.list.querySelector(`.label[data-label="${label}"] ${selector}`)?.focus();
  }
}
