// The result: threshold and switches, the text, the lists, the downloads. The server sends every span that any setting
// shows; they are filtered here, so that the model does not run again.

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
    const jump = (entity) => this.jump(entity);
    this.labelList = new LabelList(this.find(".labels"), (labels, shown) => this.toggle(labels, shown), jump);
    this.table = new SpanTable(this.find(".table"), jump);
    this.actions = {
      cancel: () => {
        this.root.dataset.state = "stopping";
        cancel();
      },
      labels: () => this.list("labels"),
      table: () => this.list("table"),
      json: () => download("entities.json", "application/json", asJson(this.shown)),
      csv: () => download("entities.csv", "text/csv", asCsv(this.shown)),
      html: () => download("entities.html", "text/html", this.page()),
    };
    this.root.addEventListener("click", ({ target }) => this.actions[target.closest("[data-do]")?.dataset.do]?.());
    this.find(".threshold input").addEventListener("input", () => this.steer(false));
    this.find(".nested input").addEventListener("change", () => this.filter());
    this.find(".own").addEventListener("click", () => this.steer(!this.own));
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  // Take a message of the server: a run's progress, an error, or a result.
  receive(message) {
    if (!message) return;
    const { progress, error, result } = JSON.parse(message);
    if (error) this.fail(error);
    else if (this.root.dataset.state !== "busy") return; // it was cancelled
    else if (result) this.show(result);
    else this.busy(progress);
  }

  busy(progress = 0) {
    const begins = this.root.dataset.state !== "busy";
    this.root.dataset.state = "busy";
    if (begins) this.comeIntoSight();
    const percent = Math.floor(100 * progress);
    const title = progress ? "Reading the text" : "Waiting for the model";
    this.find(".panel-busy .panel-title").textContent = title;
    this.find(".bar").setAttribute("aria-valuenow", percent);
    this.find(".bar span").style.width = `${percent}%`;
  }

  // A run ended without a result: it was cancelled, the queue is full or the server is gone.
  ended() {
    if (this.root.dataset.state === "stopping") this.root.dataset.state = "empty";
    if (this.root.dataset.state === "busy") this.fail("The queue is full, the text is far too long, or the model cannot be reached. Try again in a minute.");
  }

  fail(message) {
    this.find(".panel-error .message").textContent = message;
    this.root.dataset.state = "error";
    this.comeIntoSight();
  }

  // On a phone, the result lies below the visible part of the page.
  comeIntoSight() {
    if (this.root.getBoundingClientRect().top > 0.65 * innerHeight) this.root.scrollIntoView();
  }

  show({ text, words, labels, entities, thresholds, nested, floor, model, groups }) {
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
    Object.assign(this, { text, words, labels, model, hidden: new Set() });
    this.find(".own").hidden = !this.own;
    this.find(".own").title = labels.map((name, n) => `${name} ${own[n].toFixed(2)}`).join(", ");
    this.find(".threshold input").min = floor;
    this.find(".threshold input").value = this.own ? 0.5 : own[0];
    this.find(".nested input").checked = nested;
    this.labelList.show(labels, groups);
    this.table.show();
    this.list("labels");
    this.root.dataset.state = "done"; // the view measures itself, so it has to be visible
    this.view.show(text, labels);
    this.filter();
  }

  // Show one of the two lists.
  list(name) {
    this.find(".side").dataset.list = name;
    for (const each of ["labels", "table"]) this.find(`[data-do="${each}"]`).setAttribute("aria-pressed", each === name);
  }

  toggle(labels, shown) {
    for (const label of labels) shown ? this.hidden.delete(label) : this.hidden.add(label);
    this.filter();
  }

  // Scroll to a span in the text. A label that was switched off is switched on again.
  jump(entity) {
    if (this.hidden.has(entity.label)) this.toggle([entity.label], true);
    this.view.goTo(entity);
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
    this.find(".threshold output").textContent = this.own ? "per label" : threshold.toFixed(2);
    this.find(".own").setAttribute("aria-pressed", this.own);
    this.find(".summary").textContent = `${this.summary()} \u00b7 ${this.model}`;
    this.view.mark(this.shown);
    this.labelList.fill(accepted, this.hidden);
    this.table.fill(this.shown);
  }

  summary() {
    const [entities, words] = [this.shown.length, this.words];
    return `${NUMBER.format(entities)} ${entities === 1 ? "entity" : "entities"} in ${NUMBER.format(words)} ${words === 1 ? "word" : "words"}`;
  }

  page() {
    const css = document.getElementById("sener-marks").textContent;
    return asHtml(this.text, this.shown, this.labels, css, `${this.summary()}, marked by SeNER.`);
  }
}
