// The result: what steers the view, the text, the counts, the table and the downloads. The server sends JSON; the
// model's spans are filtered here, so that nothing runs again.

const ROWS = 50; // of the table on the page at a time
const COLUMNS = [
  ["Text", (entity) => entity.text],
  ["Label", (entity) => entity.labelName],
  ["Score", (entity) => entity.score],
  ["Position", (entity) => entity.start],
];
const NUMBER = new Intl.NumberFormat("en");

function make(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

class Viewer {
  constructor(element, cancel) {
    this.root = element.querySelector(".sener");
    this.view = new TextView(this.find(".sener-text"));
    this.actions = {
      cancel: () => {
        this.root.dataset.state = "stopping";
        cancel();
      },
      previous: () => this.turn(-1),
      next: () => this.turn(1),
      json: () => download("entities.json", "application/json", asJson(this.shown)),
      csv: () => download("entities.csv", "text/csv", asCsv(this.shown)),
      html: () => download("entities.html", "text/html", this.page()),
    };
    this.heads = COLUMNS.map(([name], column) => this.head(name, column));
    this.find("thead tr").append(...this.heads);
    this.root.addEventListener("click", ({ target }) => this.actions[target.closest("[data-do]")?.dataset.do]?.());
    this.find(".threshold input").addEventListener("input", () => this.steer(false));
    this.find(".nested input").addEventListener("change", () => this.filter());
    this.find(".own").addEventListener("click", () => this.steer(!this.own));
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  // A message of the server: a run's progress, an error, or a result.
  receive(message) {
    if (!message) return;
    const { progress, error, result } = JSON.parse(message);
    if (error) this.fail(error);
    else if (this.root.dataset.state !== "busy") return; // it was cancelled
    else if (result) this.show(result);
    else this.busy(progress);
  }

  busy(progress = 0) {
    this.root.dataset.state = "busy";
    const percent = Math.floor(100 * progress);
    const title = progress ? "Reading the text" : "Waiting for the model";
    this.find(".panel-busy .panel-title").textContent = title;
    this.find(".bar").setAttribute("aria-valuenow", percent);
    this.find(".bar span").style.width = `${percent}%`;
  }

  // A run that ended without a result: it was cancelled, the queue is full or the server is gone.
  ended() {
    if (this.root.dataset.state === "stopping") this.root.dataset.state = "empty";
    if (this.root.dataset.state === "busy") this.fail("The queue is full, the text is far too long, or the model cannot be reached. Try again in a minute.");
  }

  fail(message) {
    this.find(".panel-error .message").textContent = message;
    this.root.dataset.state = "error";
  }

  show({ text, words, labels, entities, thresholds, nested, floor, supplied = false }) {
    const unit = utf16Offsets(text);
    const { start, end, label, score, modes } = entities;
    this.all = start.map((_, n) => {
      const [begin, stop] = [unit(start[n]), unit(end[n])];
      return {
        number: n, start: start[n], end: end[n], begin, stop, text: text.slice(begin, stop),
        label: label[n], labelName: labels[label[n]], score: score[n], modes: modes[n],
      }; // prettier-ignore
    });
    const own = labels.map((name) => thresholds[name]);
    this.own = own.some((value) => value !== own[0]);
    Object.assign(this, { text, words, labels, hidden: new Set(), column: 3, sign: 1, row: 0 });
    this.find(".own").hidden = !this.own;
    this.find(".own").title = labels.map((name, n) => `${name} ${own[n].toFixed(2)}`).join(", ");
    this.find(".threshold input").min = floor;
    this.find(".threshold input").value = this.own ? 0.5 : own[0];
    this.find(".nested input").checked = nested;
    this.find(".caption").hidden = !supplied;
    this.find(".legend").replaceChildren(...labels.map((name, n) => this.chip(name, n)));
    this.root.dataset.state = "done"; // the view measures itself, so it has to be visible
    this.view.show(text, labels);
    this.filter();
  }

  steer(own) {
    this.own = own;
    this.filter();
  }

  filter() {
    const threshold = Number(this.find(".threshold input").value);
    const mode = (this.own ? 2 : 0) + (this.find(".nested input").checked ? 0 : 1); // of MODES in extraction.py
    const accepted = this.all.filter(({ modes, score }) => (modes >> mode) & 1 && (this.own || score >= threshold));
    this.shown = accepted.filter(({ label }) => !this.hidden.has(label));
    this.row = 0;
    this.find(".threshold output").textContent = this.own ? "per label" : threshold.toFixed(2);
    this.find(".own").setAttribute("aria-pressed", this.own);
    this.find(".summary").textContent = this.summary();
    this.view.mark(this.shown);
    this.drawCounts(accepted);
    this.drawTable();
  }

  summary() {
    const [entities, words] = [this.shown.length, this.words];
    return `${NUMBER.format(entities)} ${entities === 1 ? "entity" : "entities"} in ${NUMBER.format(words)} ${words === 1 ? "word" : "words"}`;
  }

  chip(name, label) {
    const chip = make("button", `chip hue-${label % HUES}`, name);
    chip.type = "button";
    chip.setAttribute("aria-pressed", true);
    chip.addEventListener("click", () => {
      if (!this.hidden.delete(label)) this.hidden.add(label);
      chip.setAttribute("aria-pressed", !this.hidden.has(label));
      this.filter();
    });
    return chip;
  }

  drawCounts(accepted) {
    const counts = this.labels.map(() => 0);
    for (const { label } of accepted) counts[label]++;
    const most = Math.max(1, ...counts);
    const rows = this.labels.map((name, label) => {
      const row = make("li", `hue-${label % HUES}`);
      row.classList.toggle("off", this.hidden.has(label));
      const bar = make("span", "count-bar");
      bar.append(make("span", ""));
      bar.firstChild.style.width = `${(100 * counts[label]) / most}%`;
      row.append(make("span", "count-label", name), bar, make("span", "count", NUMBER.format(counts[label])));
      return row;
    });
    this.find(".counts ul").replaceChildren(...rows);
  }

  head(name, column) {
    const head = make("th", "");
    const button = make("button", "", name);
    button.type = "button";
    button.addEventListener("click", () => {
      this.sign = this.column === column ? -this.sign : 1;
      Object.assign(this, { column, row: 0 });
      this.drawTable();
    });
    head.scope = "col";
    head.append(button);
    return head;
  }

  turn(pages) {
    this.row += pages * ROWS;
    this.drawTable();
  }

  drawTable() {
    const [, key] = COLUMNS[this.column];
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    const rows = [...this.shown].sort((a, b) => this.sign * order(key(a), key(b)) || a.number - b.number);
    const last = Math.min(this.row + ROWS, rows.length);
    const [from, to, all] = [this.row + 1, last, rows.length].map((number) => NUMBER.format(number));
    this.find(".range").textContent = rows.length ? `${from}\u2013${to} of ${all}` : "none";
    this.find('[data-do="previous"]').disabled = this.row === 0;
    this.find('[data-do="next"]').disabled = last === rows.length;
    this.heads.forEach((head, column) => {
      const direction = this.sign > 0 ? "ascending" : "descending";
      head.ariaSort = column === this.column ? direction : "none";
    });
    this.find("tbody").replaceChildren(...rows.slice(this.row, last).map((entity) => this.tableRow(entity)));
  }

  tableRow(entity) {
    const row = make("tr", `hue-${entity.label % HUES}`);
    const button = make("button", "");
    button.type = "button";
    button.title = "Show in the text";
    button.append(make("bdi", "", entity.text));
    row.addEventListener("click", () => this.view.goTo(entity));
    const cells = [button, entity.labelName, entity.score.toFixed(2), NUMBER.format(entity.start)];
    row.append(
      ...cells.map((content) => {
        const cell = make("td", "");
        cell.append(content);
        return cell;
      }),
    );
    return row;
  }

  page() {
    const css = document.getElementById("sener-marks").textContent;
    return asHtml(this.text, this.shown, this.labels, css, `${this.summary()}, marked by SeNER.`);
  }
}
