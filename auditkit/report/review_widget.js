// The page of the review desk (desk.py): shows model.card, and sends what is pressed. Text goes in as text, never as markup.

const KEYS = { a: "accept", r: "reject", u: "undo", ArrowLeft: -1, k: -1, ArrowRight: 1, j: 1 };
const SAID = { accept: "accepted", reject: "rejected", relabel: "relabelled" };

function made(tag, kind, parent, text = "") {
  const node = document.createElement(tag);
  node.className = kind;
  node.textContent = text;
  parent.append(node);
  return node;
}

function render({ model, el }) {
  const desk = made("div", "auditkit-desk", el);
  desk.tabIndex = 0;
  desk.setAttribute("role", "group");
  desk.setAttribute("aria-label", "Review of findings");
  desk.dataset.lmSuppressShortcuts = "true"; // where JupyterLab hears keys before the desk, its own rest
  const count = made("p", "count", desk);
  const pictures = made("div", "pictures", desk);
  const [before, picture] = [made("img", "before", pictures), made("img", "picture", pictures)];
  const text = made("div", "text", desk);
  const [wish, question] = [made("p", "wish", text), made("p", "question", text)];
  const options = made("div", "options", text); // the answers, while nobody is to know who gave them
  const answers = made("dl", "answers", text);
  const fields = made("div", "fields", desk);
  const field = (kind, words) => {
    const label = made("label", "", fields, words);
    return made("input", kind, label);
  };
  const [answer, note] = [field("answer", "the right answer"), field("note", "note")];
  const buttons = made("div", "buttons", desk);
  const button = (words, act) => {
    const node = made("button", "", buttons, words);
    node.type = "button";
    node.addEventListener("click", () => { act(); });
    return node;
  };
  const send = (what) => model.send({ at: model.get("card").at, answer: answer.value, note: note.value, ...what });
  const act = (what) => {
    if (typeof what === "number") send({ do: "move", step: what });
    else if (typeof what === "object") send(what);
    else send({ do: what });
    desk.focus({ preventScroll: true });
  };
  const relabel = () => { if (answer.value.trim()) act("relabel"); else answer.focus(); };
  const accept = button("Accept (a)", () => act("accept"));
  const reject = button("Reject (r)", () => act("reject"));
  const label = button("Relabel (l)", relabel);
  const undo = button("Undo (u)", () => act("undo"));
  const back = button("← Previous", () => act(-1));
  const on = button("Next →", () => act(1));
  const message = made("p", "message", desk);
  message.setAttribute("role", "status");
  const help = made("p", "help", desk);
  const OPEN =
    "Accept: the target is wrong, the consensus is right. Relabel: the target is wrong, and so is the consensus; write " +
    "the answer. Reject: no failure. Click here once, then a, r, l, n (note), u, ← and → will do; Enter leaves a field.";
  const BLIND =
    "Which answer is right? Press its number, or l and write another, or r where the question makes no sense here or " +
    "there is nothing to tell by. Then you see who said what. Click here once; n is for a note, u takes back, ← and → move.";
  const choose = (option) => act({ do: "choose", option });

  desk.addEventListener("keydown", (event) => {
    event.stopPropagation(); // nor is the notebook to hear of what is typed here
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === answer || event.target === note) {
      if (event.key === "Enter" && event.target === answer) relabel();
      else if (event.key === "Enter" || event.key === "Escape") desk.focus({ preventScroll: true });
      return;
    }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const { options: offered } = model.get("card");
    if (offered && offered[Number(key) - 1] !== undefined && !event.repeat) choose(Number(key) - 1);
    else if (offered && key === "a") return;
    else if (key === "l" || key === "n") (key === "l" ? answer : note).focus();
    else if (key in KEYS && (!event.repeat || typeof KEYS[key] === "number")) act(KEYS[key]);
    else return;
    event.preventDefault(); // else the letter is the first in the field
  });

  const show = () => {
    const card = model.get("card");
    message.textContent = card.message;
    desk.classList.toggle("empty", !card.of);
    if (!card.of) return;
    const decision = SAID[card.said.decision];
    count.textContent = `card ${card.at + 1} of ${card.of} · ${card.decided} decided` + (decision ? ` · this one ${decision}` : "");
    desk.dataset.decision = card.said.decision;
    for (const [image, shown, words] of [[before, card.before, "the original"], [picture, card.picture, "asked about"]]) {
      image.hidden = !shown;
      if (!shown) continue;
      [image.src, image.alt] = [shown[0], words];
      image.classList.toggle("small", shown[1]);
    }
    wish.textContent = card.before ? `Left the original; right what was made of it: ${card.made}` : "";
    question.textContent = card.question;
    const blind = card.options !== undefined;
    help.textContent = blind ? BLIND : OPEN;
    accept.hidden = blind;
    reject.textContent = blind ? "Makes no sense (r)" : "Reject (r)";
    label.textContent = blind ? "Another answer (l)" : "Relabel (l)";
    options.replaceChildren();
    (card.options ?? []).forEach((said, place) => {
      const node = made("button", "option", options, `${place + 1}  ${said}`);
      node.type = "button";
      node.addEventListener("click", () => choose(place));
    });
    answers.replaceChildren();
    const hidden = card.references === undefined;
    const rows = hidden ? [] : [["target", card.target], ...Object.entries(card.references), ["consensus", card.consensus ?? "(none)"]];
    for (const [name, said] of rows) {
      const row = made("div", name === "target" || name === "consensus" ? name : "reference", answers);
      made("dt", "", row, name);
      made("dd", "", row, said || "(nothing)");
    }
    if (!card.message) [answer.value, note.value] = [card.said.answer, card.said.note];
    undo.disabled = !card.undo;
    back.disabled = card.at === 0;
    on.disabled = card.at === card.of - 1;
  };
  model.on("change:card", show);
  show();
  return () => model.off("change:card", show);
}

export default { render };
