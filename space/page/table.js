// The shown spans as a table, which sorts them and leads to them.

const ROWS = 50; // on the page at a time
const COLUMNS = [
  ["Text", (entity) => entity.text],
  ["Label", (entity) => entity.labelName],
  ["Score", (entity) => entity.score],
  ["Position", (entity) => entity.start],
];

class SpanTable {
  // `jump(entity)` scrolls to its place in the text.
  constructor(root, jump) {
    Object.assign(this, { root, jump });
    this.heads = COLUMNS.map(([name], column) => this.head(name, column));
    this.find("thead tr").append(...this.heads);
    this.find(".previous").addEventListener("click", () => this.turn(-1));
    this.find(".next").addEventListener("click", () => this.turn(1));
    this.show();
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  // Begin with a new text: its spans stand in the order of the text.
  show() {
    Object.assign(this, { column: COLUMNS.length - 1, sign: 1 });
  }

  fill(shown) {
    Object.assign(this, { shown, row: 0 });
    this.draw();
  }

  head(name, column) {
    const head = make("th", "");
    const button = make("button", "", name);
    button.type = "button";
    button.addEventListener("click", () => {
      this.sign = this.column === column ? -this.sign : 1;
      Object.assign(this, { column, row: 0 });
      this.draw();
    });
    head.scope = "col";
    head.append(button);
    return head;
  }

  turn(pages) {
    this.row += pages * ROWS;
    this.draw();
  }

  draw() {
    const [, key] = COLUMNS[this.column];
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    const rows = [...this.shown].sort((a, b) => this.sign * order(key(a), key(b)) || a.number - b.number);
    const last = Math.min(this.row + ROWS, rows.length);
    const [from, to, all] = [this.row + 1, last, rows.length].map((number) => NUMBER.format(number));
    this.find(".range").textContent = rows.length ? `${from}\u2013${to} of ${all}` : "none";
    this.find(".previous").disabled = this.row === 0;
    this.find(".next").disabled = last === rows.length;
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
    row.addEventListener("click", () => this.jump(entity));
    const cells = [button, entity.labelName, entity.score.toFixed(2), NUMBER.format(entity.start)];
    row.append(
      ...cells.map((content) => {
        const cell = make("td", "");
        cell.append(content);
        if (content === entity.labelName) cell.title = content; // it may be wider than its column
        return cell;
      }),
    );
    return row;
  }
}
