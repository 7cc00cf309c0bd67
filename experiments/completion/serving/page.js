// Monaco as an editor of the language server, over a websocket.
"use strict";

const query = window.location.search;
const state = document.getElementById("state");

// What Monaco cancels itself ends as a promise that failed unheard.
window.addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name === "Canceled") event.preventDefault();
});

// JSON-RPC: notifications, requests that can be cancelled, their answers.
class Connection {
  constructor(address) {
    this.waiting = new Map();
    this.last = 0;
    this.socket = new WebSocket(address);
    this.opened = new Promise((done, failed) => {
      this.socket.onopen = done;
      this.socket.onerror = failed;
    });
    this.socket.onclose = () => { state.textContent = "disconnected"; };
    this.socket.onmessage = (event) => this.take(JSON.parse(event.data));
  }

  take(message) {
    if (message.method === "window/showMessage") {
      state.textContent = message.params.message;
      return;
    }
    const call = this.waiting.get(message.id);
    if (call) {
      this.waiting.delete(message.id);
      call(message.error ? null : message.result);
    }
  }

  send(message) {
    this.socket.send(JSON.stringify({ jsonrpc: "2.0", ...message }));
  }

  notify(method, params) {
    this.send({ method, params });
  }

  // What went wrong or was cancelled is null.
  ask(method, params, cancelled) {
    const id = ++this.last;
    return new Promise((done) => {
      this.waiting.set(id, done);
      this.send({ id, method, params });
      cancelled?.onCancellationRequested(() => {
        this.notify("$/cancelRequest", { id });
      });
    });
  }
}

const place = (p) => ({ line: p.lineNumber - 1, character: p.column - 1 });
const toRange = (r) => ({
  start: { line: r.startLineNumber - 1, character: r.startColumn - 1 },
  end: { line: r.endLineNumber - 1, character: r.endColumn - 1 },
});
const fromRange = (r) => ({
  startLineNumber: r.start.line + 1,
  startColumn: r.start.character + 1,
  endLineNumber: r.end.line + 1,
  endColumn: r.end.character + 1,
});

function follow(connection, model, uri) {
  connection.notify("textDocument/didOpen", {
    textDocument: {
      uri,
      languageId: model.getLanguageId(),
      version: model.getVersionId(),
      text: model.getValue(),
    },
  });
  return model.onDidChangeContent((event) => {
    connection.notify("textDocument/didChange", {
      textDocument: { uri, version: event.versionId },
      contentChanges: event.changes.map((c) => ({
        range: toRange(c.range),
        text: c.text,
      })),
    });
  });
}

// Kinds of entries, of the protocol (from 1) as Monaco numbers them.
const KINDS = [
  18, 0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 17, 27, 19, 20, 21, 23, 16, 14, 6,
  10, 11, 24,
];

function entry(item) {
  return {
    label: item.label,
    kind: KINDS[(item.kind ?? 1) - 1],
    detail: item.detail,
    sortText: item.sortText,
    filterText: item.filterText,
    preselect: item.preselect,
    insertText: item.textEdit.newText,
    range: fromRange(item.textEdit.range),
    additionalTextEdits: (item.additionalTextEdits ?? []).map((e) => ({
      range: fromRange(e.range),
      text: e.newText,
    })),
  };
}

function register(connection, uriOf) {
  monaco.languages.registerCompletionItemProvider("*", {
    triggerCharacters: [".", ":", ">"],
    async provideCompletionItems(model, position, context, cancelled) {
      const found = await connection.ask("textDocument/completion", {
        textDocument: { uri: uriOf(model) },
        position: place(position),
        context: { triggerKind: context.triggerKind + 1 },
      }, cancelled);
      return {
        suggestions: (found?.items ?? []).map(entry),
        incomplete: found?.isIncomplete ?? true,
      };
    },
  });
  monaco.languages.registerInlineCompletionsProvider("*", {
    async provideInlineCompletions(model, position, context, cancelled) {
      const focused = context.selectedSuggestionInfo;
      const found = await connection.ask("textDocument/inlineCompletion", {
        textDocument: { uri: uriOf(model) },
        position: place(position),
        context: {
          triggerKind: context.triggerKind === 1 ? 1 : 2,
          ...(focused && {
            selectedCompletionInfo: {
              range: toRange(focused.range),
              text: focused.text,
            },
          }),
        },
      }, cancelled);
      return {
        items: (found?.items ?? []).map((item) => ({
          insertText: item.insertText,
          range: fromRange(item.range),
        })),
      };
    },
    freeInlineCompletions() {},
  });
}

async function start() {
  const settings = await (await fetch("settings.json" + query)).json();
  const connection = new Connection(
    `ws://${window.location.host}/${query}`);
  await connection.opened;
  await connection.ask("initialize", {
    processId: null,
    rootUri: settings.root,
    workspaceFolders: [{ uri: settings.root, name: "root" }],
    capabilities: {},
  });
  connection.notify("initialized", {});

  const editor = monaco.editor.create(document.getElementById("editor"), {
    automaticLayout: true,
    inlineSuggest: { enabled: true, showToolbar: "never" },
    minimap: { enabled: false },
    quickSuggestions: true,
    suggest: { preview: false, filterGraceful: false, localityBonus: false },
    suggestSelection: "first",
    unicodeHighlight: { ambiguousCharacters: false },
    wordBasedSuggestions: "off",
  });
  // Monaco makes its ghost text when the page is idle for the first time; on a
  // busy machine, what is typed before then would have none. To get it makes it.
  editor.getContribution("editor.contrib.inlineCompletionsController");
  const name = document.getElementById("file");
  const uris = new Map();
  let following = null;
  register(connection, (model) => uris.get(model));

  function show() {
    const uri = settings.root + "/" + encodeURI(name.value);
    const before = editor.getModel();
    const model = monaco.editor.createModel(
      before?.getValue() ?? "", undefined, monaco.Uri.parse(uri));
    if (following) {
      following.dispose();
      connection.notify("textDocument/didClose", {
        textDocument: { uri: uris.get(before) },
      });
    }
    uris.set(model, uri);
    following = follow(connection, model, uri);
    editor.setModel(model);
    before?.dispose();
    editor.focus();
  }
  name.addEventListener("change", show);
  show();
  window.codeEditor = editor;
  state.textContent = "connected";
}

require.config({ paths: { vs: "vs" } });
require(["vs/editor/editor.main"], start);
