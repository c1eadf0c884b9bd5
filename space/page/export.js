// Download the shown entities as JSON, CSV or HTML. The JSON has the form of the Python pipeline's results.

function asJson(entities) {
  const rows = entities.map(({ start, end, text, labelName: label, score }) => ({ start, end, text, label, score }));
  return `${JSON.stringify(rows, null, 1)}\n`;
}

function asCsv(entities) {
  const rows = entities.map((entity) => [entity.start, entity.end, entity.text, entity.labelName, entity.score]);
  return [["start", "end", "text", "label", "score"], ...rows].map((row) => `${row.map(csvCell).join(",")}\r\n`).join("");
}

function csvCell(value) {
  let cell = String(value);
  if (/^[=+\-@\t\r]/.test(cell) && typeof value === "string") cell = `'${cell}`; // else a spreadsheet would compute it
  return /[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
}

// A page of its own, without scripts. The browser serialises text nodes, so all of the text is escaped.
function asHtml(text, unordered, labels, css, note) {
  const entities = outermostFirst(unordered);
  const page = document.implementation.createHTMLDocument("Entities");
  const style = page.createElement("style");
  style.textContent = `${css}
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }`;
  const meta = page.createElement("meta");
  meta.setAttribute("charset", "utf-8");
  const viewport = page.createElement("meta");
  viewport.name = "viewport";
  viewport.content = "width=device-width, initial-scale=1";
  page.head.prepend(meta, viewport);
  page.head.append(style);
  const box = page.createElement("main");
  box.className = "sener-text";
  box.style.setProperty("--depth", Math.max(1, nestingDepth(entities)));
  box.append(markUp(text, 0, text.length, entities, labels, null));
  const caption = page.createElement("p");
  caption.textContent = note;
  page.body.append(caption, box);
  // The parser would turn a carriage return into a line feed.
  return `<!DOCTYPE html>\n${page.documentElement.outerHTML.replaceAll("\r", "&#13;")}\n`;
}

function download(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: `${type};charset=utf-8` }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
