// A conversation of texts and images with the model behind this page's API.
import { html, render, useEffect, useRef, useState } from "/page/vendor/htm-preact-3.1.1.js";

const FOLLOWS = { image: "an image", text: "text", any: "texts and images" };
const KEPT = "transfusion-conversation";
const TOKEN = "transfusion-token";
const POLL = 1000; // ms between two looks at whether the server has compiled

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem(TOKEN, given);
  history.replaceState(null, "", location.pathname); // so that no bookmark holds it
}

class Unauthorized extends Error {}

/** `fetch` with the token, where there is one. */
async function ask(path, how = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...how.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const answer = await fetch(path, { ...how, headers });
  if (answer.status === 401) throw new Unauthorized("the server asks for its token");
  if (!answer.ok) throw new Error(await problem(answer));
  return answer;
}

/** Calls `tell(name, values)` for each server-sent event of an answer. */
async function stream(body, tell, signal) {
  const answer = await ask("/v1/generate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const [name, data] = event.split("\n");
      tell(name.slice("event: ".length), JSON.parse(data.slice("data: ".length)));
    }
  }
}

async function problem(answer) {
  const said = await answer.json().catch(() => ({}));
  if (typeof said.detail === "string") return said.detail;
  if (Array.isArray(said.detail)) return said.detail.map((d) => `${d.loc.slice(1).join(" ")}: ${d.msg}`).join("; ");
  return `the server answered ${answer.status}`;
}

/** An image file as a data URL. */
function load(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** A turn's parts with one more event in it. */
function grown(parts, name, values) {
  const last = parts.at(-1);
  if (name === "text") {
    if (last?.type === "text") return [...parts.slice(0, -1), { type: "text", text: last.text + values.text }];
    return [...parts, { type: "text", text: values.text }];
  }
  const image = { type: "image", image: values.image, drawing: name === "preview", ...values };
  return [...(last?.drawing ? parts.slice(0, -1) : parts), image];
}

const bare = (part) => (part.type === "text" ? { type: "text", text: part.text } : { type: "image", image: part.image });

function Part({ part, edit, number }) {
  if (part.type === "text") return html`<p>${part.text}</p>`;
  const alt = part.drawing ? "an image being drawn" : part.uploaded ? "an uploaded image" : "a drawn image";
  return html`<figure class=${part.drawing ? "drawing" : ""}>
    <img src=${part.image} alt=${alt} />
    ${part.drawing && html`<progress value=${part.done} max=${part.total} aria-label="denoising"></progress>`}
    ${!part.drawing &&
    html`<div class="actions">
      <button type="button" class="secondary outline small" onClick=${() => edit(part)}>Use</button>
      <a role="button" class="secondary outline small" href=${part.image} download=${`image-${number}.png`}>Save</a>
    </div>`}
  </figure>`;
}

function Turn({ turn, edit, number }) {
  const who = turn.role === "asked" ? "You" : "Model";
  return html`<li class=${turn.role}>
    <span class="hidden">${who}: </span>
    <div class="parts">
      ${turn.parts.map((part, i) => html`<${Part} part=${part} edit=${edit} number=${`${number}-${i}`} />`)}
      ${turn.busy && !turn.parts.length && html`<p aria-busy="true">${turn.compiling ? "compiling" : "waiting"}</p>`}
    </div>
    ${turn.error && html`<p class="error" role="alert">${turn.error}</p>`}
  </li>`;
}

function TokenForm({ wrong, done }) {
  const [token, setToken] = useState("");
  const box = useRef(null);
  useEffect(() => box.current.focus(), []);
  function enter(event) {
    event.preventDefault();
    sessionStorage.setItem(TOKEN, token.trim());
    done();
  }
  return html`<form class="ask token" onSubmit=${enter}>
    ${wrong && html`<p class="error" role="alert">The server does not take this token.</p>`}
    <label>Token<input type="password" autocomplete="off" required ref=${box} value=${token}
      onInput=${(e) => setToken(e.target.value)} /></label>
    <p><small>This server asks for the token that it was started with.</small></p>
    <button type="submit">Go on</button>
  </form>`;
}

function Page() {
  const [model, setModel] = useState(null);
  const [locked, setLocked] = useState("");
  const [turns, setTurns] = useState(() => JSON.parse(sessionStorage.getItem(KEPT) ?? "[]"));
  const [text, setText] = useState("");
  const [attached, setAttached] = useState(null);
  const [follow, setFollow] = useState("image");
  const [how, setHow] = useState({ seed: 0, onward: false });
  const [said, setSaid] = useState("");
  const [error, setError] = useState("");
  const stop = useRef(null);
  const box = useRef(null);
  const end = useRef(null);
  const busy = turns.some((turn) => turn.busy);

  async function open() {
    try {
      const found = await (await ask("/v1/model")).json();
      setModel(found);
      setLocked("");
      setHow((old) => ({ ...old, steps: found.steps, guidance: found.guidance }));
      if (found.images === "none") setFollow("text");
      document.title = found.name;
    } catch (problem) {
      if (problem instanceof Unauthorized) lock();
      else setError(problem.message);
    }
  }

  const lock = () => setLocked(sessionStorage.getItem(TOKEN) ? "wrong" : "asked");

  useEffect(() => void open(), []);
  useEffect(() => {
    if (!model || model.warm) return;
    const timer = setTimeout(async () => {
      const found = await ask("/v1/model").then((answer) => answer.json(), () => model);
      setModel({ ...found });
    }, POLL);
    return () => clearTimeout(timer);
  }, [model]);
  useEffect(() => { if (!locked) box.current?.focus(); }, [locked]);
  useEffect(() => {
    if (busy) return;
    try {
      sessionStorage.setItem(KEPT, JSON.stringify(turns));
    } catch {
      sessionStorage.removeItem(KEPT); // too large to keep: a reload begins anew
    }
  }, [turns, busy]);

  useEffect(() => end.current.scrollIntoView({ block: "end" }), [turns]);

  async function send(event) {
    event?.preventDefault();
    if (busy || !(text.trim() || attached)) return;
    const parts = [];
    if (attached) parts.push({ type: "image", image: attached.image, uploaded: true });
    if (text.trim()) parts.push({ type: "text", text: text.trim() });
    const before = how.onward ? turns.filter((turn) => !turn.error).flatMap((turn) => turn.parts) : [];
    const kept = turns;
    let answer = { role: "made", parts: [], busy: true };
    const show = (change) => {
      answer = { ...answer, ...change };
      setTurns([...kept, { role: "asked", parts }, answer]);
    };
    show({});
    setText("");
    setAttached(null);
    setError("");
    if (matchMedia("(pointer: fine)").matches) box.current.focus(); // a touch would bring the keyboard up
    const body = { parts: [...before, ...parts].map(bare), follow, seed: how.seed, previews: 8 };
    if (follow !== "text" && model?.images === "latents") body.steps = how.steps;
    if (follow !== "text") body.guidance = how.guidance;
    stop.current = new AbortController();
    try {
      await stream(body, (name, values) => {
        if (name === "error") show({ error: values.detail });
        else if (name === "compiling") show({ compiling: values.now });
        else if (name !== "end") show({ parts: grown(answer.parts, name, values) });
      }, stop.current.signal);
      show({ busy: false });
      setSaid(`The model made ${answer.parts.map((p) => (p.type === "text" ? p.text : "an image")).join(", ") || "nothing"}`);
    } catch (problem) {
      if (problem instanceof Unauthorized) {
        setTurns(kept);
        setText(text);
        setAttached(attached);
        lock();
        return;
      }
      const error = problem.name === "AbortError" ? "stopped" : problem.message;
      show({ busy: false, error, parts: answer.parts.filter((p) => !p.drawing) });
    }
  }

  async function attach(file) {
    if (file) setAttached({ image: await load(file) });
    if (file && follow === "image" && !text.trim()) setFollow("text");
  }

  function use(part) {
    setAttached({ image: part.image });
    box.current.focus();
  }

  const number = (name, label, least, most, step) => html`<label>
    ${label}
    <input type="number" name=${name} min=${least} max=${most} step=${step} value=${how[name]}
      onInput=${(e) => e.target.validity.valid && e.target.value !== "" && setHow({ ...how, [name]: Number(e.target.value) })} />
  </label>`;

  return html`
    <header>
      <h1>${model?.name ?? "transfusion"}</h1>
      ${model && html`<p>step ${model.step}, ${model.weights} weights, images of ${model.image_size.slice(0, 2).join(" × ")}</p>`}
      ${model && !model.warm && html`<p class="note" aria-busy="true">compiling: the first answer takes a while</p>`}
      <details>
        <summary>Settings</summary>
        <fieldset>
          ${model?.images === "latents" && number("steps", "Steps", 1, model.most_steps, 1)}
          ${model?.images !== "none" && number("guidance", "Guidance", 0, 100, "any")}
          ${number("seed", "Seed", 0, 4294967295, 1)}
          <label class="wide"><input type="checkbox" checked=${how.onward} onChange=${(e) => setHow({ ...how, onward: e.target.checked })} />
            go on from the conversation below</label>
          <button type="button" class="wide secondary outline small" disabled=${busy} onClick=${() => setTurns([])}>New conversation</button>
        </fieldset>
      </details>
    </header>
    <main>
      <ol class="turns" aria-label="conversation">
        ${turns.map((turn, i) => html`<${Turn} key=${i} turn=${turn} edit=${use} number=${i} />`)}
      </ol>
      <p class="hidden" role="status">${said}</p>
      <span class="end" ref=${end}></span>
      ${locked ? html`<${TokenForm} key=${locked} wrong=${locked === "wrong"} done=${open} />` : html`<form class="ask" onSubmit=${send}>
        ${error && html`<p class="error" role="alert">${error}</p>`}
        <label class="hidden" for="prompt">Prompt</label>
        <textarea id="prompt" rows="2" ref=${box} value=${text} placeholder="a prompt; Enter sends it, Shift + Enter breaks the line"
          onInput=${(e) => setText(e.target.value)}
          onKeyDown=${(e) => e.key === "Enter" && !e.shiftKey && !e.isComposing && send(e)}></textarea>
        <div class="row">
          ${attached && html`<span class="attached">
            <img src=${attached.image} alt="the image that goes with the prompt" />
            <button type="button" class="secondary outline small" onClick=${() => setAttached(null)}>Remove</button>
          </span>`}
          ${model?.images !== "none" && html`
            <label role="button" class="secondary outline" tabindex="0"
              onKeyDown=${(e) => (e.key === "Enter" || e.key === " ") && (e.preventDefault(), e.target.control.click())}>
              Upload<input class="hidden" type="file" accept="image/*" tabindex="-1" aria-label="Upload an image"
                onChange=${(e) => { attach(e.target.files[0]); e.target.value = ""; }} />
            </label>
            <label class="makes">makes <select aria-label="What is made" value=${follow} onChange=${(e) => setFollow(e.target.value)}>
              ${Object.entries(FOLLOWS).map(([name, words]) => html`<option value=${name}>${words}</option>`)}
            </select></label>`}
          ${busy
            ? html`<button type="button" class="send secondary" onClick=${() => stop.current.abort()}>Stop</button>`
            : html`<button type="submit" class="send" disabled=${!model}>Send</button>`}
        </div>
      </form>`}
    </main>`;
}

render(html`<${Page} />`, document.body);
