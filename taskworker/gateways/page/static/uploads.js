// Uploads files that were chosen or dropped, a few at a time, and shows how far each is.
const AT_ONCE = 3;
const waiting = [];
let running = 0;

/** Take what is chosen in, or dropped on, the page's form for uploads. */
export function followUploads() {
  const form = document.getElementById("upload");
  if (!form) return;
  const input = form.querySelector("input[type=file]");
  input.addEventListener("change", () => {
    take(form, input.files);
    input.value = "";
  });
  form.addEventListener("dragover", (event) => {
    event.preventDefault();
    form.classList.add("over");
  });
  form.addEventListener("dragleave", () => form.classList.remove("over"));
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    take(form, event.dataTransfer.files);
  });
}

function take(form, files) {
  for (const file of files) waiting.push({ file, ...row(file.name), ...form.dataset });
  begin();
}

function row(name) {
  const item = document.createElement("li");
  const label = document.createElement("bdi");
  label.textContent = name.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (one) => `⟨U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
  const progress = document.createElement("progress");
  progress.max = 1;
  progress.value = 0;
  progress.setAttribute("aria-label", `Upload of ${label.textContent}`);
  const state = document.createElement("span");
  state.textContent = "waits";
  item.append(label, progress, state);
  document.getElementById("uploads").append(item);
  return { item, progress, state };
}

function begin() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    upload(waiting.shift());
  }
}

function upload({ file, item, progress, state, owner, directory }) {
  const request = new XMLHttpRequest(); // fetch() does not tell how much was sent
  const query = new URLSearchParams({ owner, name: directory + file.name });
  request.open("PUT", `/files/upload?${query}`);
  request.setRequestHeader("x-csrf", document.body.dataset.csrf);
  request.setRequestHeader("content-type", "application/octet-stream");
  request.responseType = "json";
  state.textContent = "0 %";
  request.upload.addEventListener("progress", (event) => {
    progress.value = event.loaded / (event.total || 1);
    state.textContent = event.loaded === event.total ? "is being stored" : `${Math.floor(100 * progress.value)} %`;
  });
  request.addEventListener("loadend", () => {
    running -= 1;
    const answer = request.response;
    progress.remove();
    if (request.status === 200) {
      const link = document.createElement("a");
      link.href = answer.url;
      link.textContent = answer.unchanged ? "is stored already" : "is stored";
      state.replaceChildren(link);
    } else {
      state.textContent = answer?.problem ?? "was not stored: the page could not be reached";
      item.classList.add("problem");
    }
    document.getElementById("said").textContent = `${file.name}: ${state.textContent}`;
    begin();
  });
  request.send(file);
}
