// Keeps the part of the page that changes up to date while a run is open; the rest needs no script.
const live = document.getElementById("live");
const look = async () => {
  try {
    const answer = await fetch(live.dataset.url);
    if (answer.status === 401 || answer.headers.get("X-Run-State") !== live.dataset.state) {
      if (answer.ok || answer.status === 401) return location.reload();
    } else {
      live.innerHTML = await answer.text();
    }
  } catch {
    // The server or the network is away: the next look tells.
  }
  setTimeout(look, 2000);
};
setTimeout(look, 2000);
