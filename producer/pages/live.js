// Keeps the page up to date: fetches it again and again, and changes only what differs. So focus,
// selection, what is open and what is being typed stay. Without script, the page works all the same.
const page = document.getElementById("page");
const connection = document.getElementById("connection");
const SHORTEST_MS = 2000, SHARE = 0.05, PATIENCE_MS = 20000;

const isSame = (one, other) =>
  one.nodeType === other.nodeType && one.nodeName === other.nodeName && (one.id || "") === (other.id || "");

const update = (old, now) => {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== now.nodeValue) old.nodeValue = now.nodeValue;
    return;
  }
  for (const { name, value } of now.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    // What somebody opened stays open.
    if (!now.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  merge(old, now);
};

// Children with an id are matched by it, so that a button never changes its meaning under a finger;
// all others by their place.
const merge = (old, now) => {
  const wanted = new Set([...now.children].map((child) => child.id).filter(Boolean));
  for (const child of [...old.children]) if (child.id && !wanted.has(child.id)) child.remove();
  let place = old.firstChild;
  for (const next of [...now.childNodes]) {
    const known = next.id && [...old.children].find((child) => child.id === next.id);
    while (known && place !== known && place && !place.id) {
      const gone = place;
      place = place.nextSibling;
      gone.remove();
    }
    if (known && known !== place) old.insertBefore(known, place);
    const found = known || place;
    if (found && isSame(found, next)) {
      update(found, next);
      place = found.nextSibling;
    } else {
      old.insertBefore(next, place);
    }
  }
  while (place) {
    const gone = place;
    place = place.nextSibling;
    gone.remove();
  }
};

const fetchPage = async () => {
  const answer = await fetch(location.href, { signal: AbortSignal.timeout(PATIENCE_MS) });
  if (answer.redirected) location.reload(); // The session is over.
  const found = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (!answer.ok) throw new Error(found.querySelector("h1").textContent);
  return found;
};

const look = async () => {
  const began = performance.now();
  try {
    const found = await fetchPage();
    if (document.title !== found.title) {
      // The run moved on: what came of the last button is old.
      for (const flash of document.querySelectorAll(".flash")) flash.remove();
      document.title = found.title;
    }
    merge(page, found.getElementById("page"));
    connection.hidden = true;
  } catch (failure) {
    const since = document.getElementById("as-of").textContent;
    const why = failure.name === "Error" ? `${failure.message}: no news` : "No connection";
    const said = `${why} since ${since} UTC. What you see is of that time. Trying again.`;
    if (connection.textContent !== said) connection.textContent = said;
    connection.hidden = false;
  }
  const pause = Math.max(SHORTEST_MS, (performance.now() - began) / SHARE);
  setTimeout(() => (document.hidden ? document.addEventListener("visibilitychange", look, { once: true }) : look()),
    Math.min(pause, 10 * SHORTEST_MS));
};
setTimeout(look, SHORTEST_MS);
