// Elements. Text is set as text everywhere: nothing that the balancer says is read as markup.

export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// Changes a text only if it is another one, so that selections survive.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const rowsOf = new WeakMap(); // parent -> rows by key

// The child elements for items, one for each key: made once, updated each time, removed with their item.
export function keyed(parent, items, keyOf, make) {
  if (!rowsOf.has(parent)) rowsOf.set(parent, new Map());
  const rows = rowsOf.get(parent);
  const present = new Set();
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (present.has(key)) continue;
    present.add(key);
    let row = rows.get(key);
    if (!row) {
      row = make(item);
      rows.set(key, row);
    }
    if (row.element === place) place = place.nextElementSibling;
    else parent.insertBefore(row.element, place);
    row.update(item);
  }
  for (const [key, row] of rows) {
    if (present.has(key)) continue;
    row.element.remove();
    rows.delete(key);
  }
}

