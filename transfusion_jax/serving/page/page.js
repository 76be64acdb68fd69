// A conversation of texts and images with the model behind this page's API.
import { html, render, useEffect, useRef, useState } from "/page/vendor/htm-preact-3.1.1.js";

const FOLLOWS = { image: "an image", text: "text", any: "texts and images" };
const KEPT = "transfusion-conversation";

/** Calls `tell(name, values)` for each server-sent event of an answer. */
async function stream(body, tell, signal) {
  const answer = await fetch("/v1/generate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!answer.ok) throw new Error(await problem(answer));
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
      ${turn.busy && !turn.parts.length && html`<p aria-busy="true">waiting</p>`}
    </div>
    ${turn.error && html`<p class="error" role="alert">${turn.error}</p>`}
  </li>`;
}

function Page() {
  const [model, setModel] = useState(null);
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

  useEffect(() => {
    fetch("/v1/model")
      .then((answer) => answer.json())
      .then((found) => {
        setModel(found);
        setHow((old) => ({ ...old, steps: found.steps, guidance: found.guidance }));
        if (found.images === "none") setFollow("text");
        document.title = found.name;
      }, (problem) => setError(String(problem)));
  }, []);
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
    const body = { parts: [...before, ...parts].map(bare), follow, seed: how.seed, previews: 8 };
    if (follow !== "text" && model.images === "latents") body.steps = how.steps;
    if (follow !== "text") body.guidance = how.guidance;
    stop.current = new AbortController();
    try {
      await stream(body, (name, values) => {
        if (name === "error") show({ error: values.detail });
        else if (name !== "end") show({ parts: grown(answer.parts, name, values) });
      }, stop.current.signal);
      show({ busy: false });
      setSaid(`The model made ${answer.parts.map((p) => (p.type === "text" ? p.text : "an image")).join(", ") || "nothing"}`);
    } catch (problem) {
      const stopped = problem.name === "AbortError";
      show({ busy: false, error: stopped ? "stopped" : problem.message, parts: answer.parts.filter((p) => !p.drawing) });
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
      <form class="ask" onSubmit=${send}>
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
      </form>
    </main>`;
}

render(html`<${Page} />`, document.body);
