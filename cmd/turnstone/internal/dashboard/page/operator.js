// What an operator may do who has the token. It is kept as long as the tab, and shown in a header.
import { $, ask, fail, say, set } from "./parts.js";

const kept = "turnstone-token";
let changed = () => {};

export const signedIn = () => sessionStorage.getItem(kept) !== null;

const show = (token) => ({ method: "POST", headers: { Authorization: `Bearer ${token}` } });

function signs() {
  set($("sign"), signedIn() ? "Sign out" : "Sign in");
  changed();
}

// offer says whether there is a token to sign in with, and whom to tell that somebody has.
export function offer(there, tell) {
  changed = tell;
  $("sign").hidden = !there;
  if (!there) sessionStorage.removeItem(kept);
  signs();
}

$("sign").onclick = () => {
  if (signedIn()) {
    sessionStorage.removeItem(kept);
    signs();
    say("signed out");
    return;
  }
  set($("sign-error"), "");
  $("token").value = "";
  openDialog($("sign-dialog"));
};
$("sign-cancel").onclick = () => $("sign-dialog").close();
$("sign-form").addEventListener("submit", async (e) => {
  e.preventDefault();
  const token = $("token").value.trim();
  try {
    await ask("operator", {}, show(token));
    sessionStorage.setItem(kept, token);
    $("sign-dialog").close();
    signs();
    say("signed in");
  } catch (err) { set($("sign-error"), err.message); }
});

// openDialog opens a dialog. The focus goes back to where it was, also where that has been made anew.
function openDialog(d) {
  const key = document.activeElement?.dataset?.key;
  d.addEventListener("close", () => { if (key) (document.querySelector(`[data-key="${CSS.escape(key)}"]`) ?? $("allocations")).focus(); }, { once: true });
  d.showModal();
}

let confirmed = () => {};
$("confirm-cancel").onclick = () => $("confirm-dialog").close();
$("confirm-do").onclick = () => { $("confirm-dialog").close(); confirmed(); };

// closeAllocation ends one, when the operator has said so twice.
export function closeAllocation(a, done) {
  set($("confirm-title"), `Close allocation ${a.id}?`);
  set($("confirm-text"), `It is of ${a.username || "no user"} at ${a.client}. Nothing more is relayed for it from then on, and its client may make another.`);
  set($("confirm-do"), "Close the allocation");
  confirmed = async () => {
    try {
      await ask(`allocations/${a.id}/close`, {}, show(sessionStorage.getItem(kept)));
      say(`allocation ${a.id} is closed`);
      fail();
      done();
    } catch (err) {
      if (err.status === 401) { sessionStorage.removeItem(kept); signs(); }
      $("error").hidden = false;
      set($("error"), `Allocation ${a.id} is not closed: ${err.message}`);
    }
  };
  openDialog($("confirm-dialog"));
}
