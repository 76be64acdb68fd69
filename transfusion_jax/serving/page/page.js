// A conversation of texts and images with the model behind this page's API.
import { html, render, useEffect, useRef, useState } from "/page/vendor/htm-preact-3.1.1.js";

const FOLLOWS = { image: "an image", text: "text", any: "texts and images" };
const SHAPES = { "1:1": "square", "2:1": "wide", "1:2": "tall", "4:3": "4:3", "3:4": "3:4", "3:2": "3:2", "2:3": "2:3", "16:9": "16:9", "9:16": "9:16" };
const FREE = "free"; // a shape of a width and a height in pixels
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

/** Awaits `tell(name, values)` for each server-sent event of an answer. */
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
      await tell(name.slice("event: ".length), JSON.parse(data.slice("data: ".length)));
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

/** Width over height of an image; 1 where the browser cannot show it. */
async function ratioOf(url) {
  const image = new Image();
  image.src = url;
  await image.decode().catch(() => {});
  return image.naturalWidth / image.naturalHeight || 1;
}

/** Width over height of what is asked for, or undefined where the model chooses. */
function askedRatio(model, how, before) {
  if (how.shape === FREE) return how.width / how.height;
  if (how.shape) return how.shape.split(":").reduce((width, height) => width / height);
  const last = model.shapes && before.findLast((part) => part.type === "image");
  if (last) return last.ratio;
  return model.shapes?.chosen ? undefined : model.image_size[1] / model.image_size[0];
}

/** A turn's parts with one more event in it. */
async function grown(parts, name, values) {
  const last = parts.at(-1);
  if (name === "text") {
    if (last?.type === "text") return [...parts.slice(0, -1), { type: "text", text: last.text + values.text }];
    return [...parts, { type: "text", text: values.text }];
  }
  const image = { type: "image", drawing: name === "preview", ratio: await ratioOf(values.image), ...values };
  return [...(last?.drawing ? parts.slice(0, -1) : parts), image];
}

const bare = (part) => (part.type === "text" ? { type: "text", text: part.text } : { type: "image", image: part.image });

/** What an image's rectangle is drawn by: rectangles have about one area. */
const inProportion = (ratio = 1) => `--ratio: ${ratio}; --root: ${Math.sqrt(ratio)}`;

function Part({ part, edit, number }) {
  if (part.type === "text") return html`<p>${part.text}</p>`;
  const alt = part.drawing ? "an image being drawn" : part.uploaded ? "an uploaded image" : "a drawn image";
  return html`<figure class=${part.drawing ? "drawing" : ""} style=${inProportion(part.ratio)}>
    <img src=${part.image} alt=${alt} />
    <div class="actions">${part.drawing
      ? html`<progress value=${part.done} max=${part.total} aria-label="denoising"></progress>`
      : html`<button type="button" class="secondary outline small" onClick=${() => edit(part)}>Use</button>
      <a role="button" class="secondary outline small" href=${part.image} download=${`image-${number}.png`}>Save</a>`}
    </div>
  </figure>`;
}

/** What stands where nothing was made yet: an empty image of the shape that is asked for, where it is known. */
function Waiting({ turn }) {
  const words = html`<p aria-busy="true">${turn.compiling ? "compiling" : "waiting"}</p>`;
  if (!turn.ratio) return words;
  return html`<figure style=${inProportion(turn.ratio)}><div class="blank">${words}</div><div class="actions"></div></figure>`;
}

function Turn({ turn, edit, number }) {
  const who = turn.role === "asked" ? "You" : "Model";
  return html`<li class=${turn.role}>
    <span class="hidden">${who}: </span>
    <div class="parts">
      ${turn.parts.map((part, i) => html`<${Part} part=${part} edit=${edit} number=${`${number}-${i}`} />`)}
      ${turn.busy && !turn.parts.length && html`<${Waiting} turn=${turn} />`}
    </div>
    ${turn.warning && html`<p class="warning">${turn.warning}</p>`}
    ${turn.error && html`<p class="error" role="alert">${turn.error}</p>`}
  </li>`;
}

function ShapeChoice({ shapes, how, setHow }) {
  const side = (name) => html`<input type="number" aria-label=${`${name} in pixels`} min=${shapes.multiple}
    max=${shapes.largest_side} step=${shapes.multiple} required value=${how[name]}
    onInput=${(e) => e.target.value && setHow({ ...how, [name]: e.target.valueAsNumber })} />`;
  return html`<span class="shape">
    <select aria-label="Shape" value=${how.shape} onChange=${(e) => setHow({ ...how, shape: e.target.value })}>
      <option value="">${shapes.chosen ? "its own shape" : "usual shape"}</option>
      ${Object.entries(SHAPES).map(([ratio, words]) => html`<option value=${ratio}>${words}</option>`)}
      <option value=${FREE}>width × height</option>
    </select>
    ${how.shape === FREE && html`${side("width")} × ${side("height")}`}
  </span>`;
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
  const [how, setHow] = useState({ seed: 0, onward: false, shape: "" });
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
      const [height, width] = found.image_size;
      setHow((old) => ({ ...old, steps: found.steps, guidance: found.guidance, height, width }));
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
    if (busy || !(text.trim() || attached) || !box.current.form.reportValidity()) return;
    const parts = [];
    if (attached) parts.push({ type: "image", ...attached, uploaded: true });
    if (text.trim()) parts.push({ type: "text", text: text.trim() });
    const before = how.onward ? turns.filter((turn) => !turn.error).flatMap((turn) => turn.parts) : [];
    const kept = turns;
    const ratio = follow === "image" ? askedRatio(model, how, [...before, ...parts]) : undefined;
    let answer = { role: "made", parts: [], busy: true, ratio };
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
    if (follow !== "text" && how.shape === FREE) body.size = `${how.width}x${how.height}`;
    else if (follow !== "text" && how.shape) body.aspect = how.shape;
    stop.current = new AbortController();
    try {
      await stream(body, async (name, values) => {
        if (name === "error") show({ error: values.detail });
        else if (name === "compiling") show({ compiling: values.now });
        else if (name === "warning") show({ warning: values.detail });
        else if (name !== "end") show({ parts: await grown(answer.parts, name, values) });
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
    if (!file) return;
    const image = await load(file);
    setAttached({ image, ratio: await ratioOf(image) });
    if (follow === "image" && !text.trim()) setFollow("text");
  }

  function use(part) {
    setAttached({ image: part.image, ratio: part.ratio });
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
      ${model && html`<p>step ${model.step}, ${model.weights} weights, images of ${model.shapes ? "any shape, up to the area of " : ""}${model.image_size.slice(0, 2).join(" × ")}</p>`}
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
          ${model?.shapes && follow !== "text" && html`<${ShapeChoice} shapes=${model.shapes} how=${how} setHow=${setHow} />`}
          ${busy
            ? html`<button type="button" class="send secondary" onClick=${() => stop.current.abort()}>Stop</button>`
            : html`<button type="submit" class="send" disabled=${!model}>Send</button>`}
        </div>
      </form>`}
      <span ref=${end}></span>
    </main>`;
}

render(html`<${Page} />`, document.body);
