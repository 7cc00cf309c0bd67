// A language server around javac, for locojax.engines: full text changes, pull
// diagnostics, completion of members and names, signatures. Started by
// `java JavacServer.java`; speaks JSON-RPC on its standard streams.
//
// Nothing of what it is given is run: annotation processing is off, and classes
// are analysed, never written or loaded.

import com.sun.source.tree.*;
import com.sun.source.util.*;
import java.io.*;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.util.*;
import javax.lang.model.element.*;
import javax.lang.model.type.*;
import javax.lang.model.util.Elements;
import javax.tools.*;

public class JavacServer {
  static final JavaCompiler COMPILER = ToolProvider.getSystemJavaCompiler();
  static final String HOLE = "locojaxHole_";
  static final Map<String, String> texts = new LinkedHashMap<>();
  static Path root = Paths.get(".");
  static InputStream in;
  static OutputStream out;

  public static void main(String[] args) throws IOException {
    in = new BufferedInputStream(System.in);
    out = new BufferedOutputStream(System.out);
    System.setOut(System.err);
    if (COMPILER == null) {
      System.err.println("this Java has no compiler: a JDK is needed");
      System.exit(2);
    }
    for (Object message; (message = read()) != null; ) {
      Map<?, ?> m = (Map<?, ?>) message;
      if ("exit".equals(m.get("method"))) break;
      Map<String, Object> answer = new LinkedHashMap<>();
      answer.put("jsonrpc", "2.0");
      answer.put("id", m.get("id"));
      try {
        answer.put("result", handle((String) m.get("method"), m.get("params")));
      } catch (RuntimeException | IOException error) {
        answer.put("error", Map.of("code", -32603, "message", "" + error));
      }
      if (m.get("id") != null) write(answer);
    }
    System.exit(0);
  }

  // Messages.

  static Object handle(String method, Object params) throws IOException {
    switch (method) {
      case "initialize": {
        Object uri = at(params, "rootUri");
        if (uri != null) root = Paths.get(URI.create((String) uri));
        return Map.of(
            "serverInfo", Map.of("name", "javac", "version", System.getProperty("java.version")),
            "capabilities", Map.of(
                "textDocumentSync", 1,
                "completionProvider", Map.of("triggerCharacters", List.of(".")),
                "signatureHelpProvider", Map.of("triggerCharacters", List.of("(", ",")),
                "diagnosticProvider", Map.of("interFileDependencies", true, "workspaceDiagnostics", false)));
      }
      case "textDocument/didOpen":
        texts.put((String) at(params, "textDocument", "uri"), (String) at(params, "textDocument", "text"));
        return null;
      case "textDocument/didChange":
        for (Object change : (List<?>) at(params, "contentChanges"))
          texts.put((String) at(params, "textDocument", "uri"), (String) at(change, "text"));
        return null;
      case "textDocument/didClose":
        texts.remove((String) at(params, "textDocument", "uri"));
        return null;
      case "textDocument/diagnostic":
        return Map.of("kind", "full", "items", diagnostics((String) at(params, "textDocument", "uri")));
      case "textDocument/completion":
        return complete((String) at(params, "textDocument", "uri"), at(params, "position"));
      case "textDocument/signatureHelp":
        return signatures((String) at(params, "textDocument", "uri"), at(params, "position"));
      default:
        return null;
    }
  }

  static Object at(Object value, String... keys) {
    for (String key : keys) value = value == null ? null : ((Map<?, ?>) value).get(key);
    return value;
  }

  // The compiler.

  static class Source extends SimpleJavaFileObject {
    final String text;

    Source(String uri, String text) {
      super(URI.create(uri), Kind.SOURCE);
      this.text = text;
    }

    @Override
    public CharSequence getCharContent(boolean ignored) {
      return text;
    }

    // A public class may be in a file of any name while it is written.
    @Override
    public boolean isNameCompatible(String name, Kind kind) {
      return true;
    }
  }

  static class Analysis {
    final DiagnosticCollector<JavaFileObject> found = new DiagnosticCollector<>();
    JavacTask task;
    CompilationUnitTree unit;
  }

  /** Analyses one document; others that are open are seen as they are there. */
  static Analysis analyse(String uri, String text) throws IOException {
    Analysis a = new Analysis();
    StandardJavaFileManager files = COMPILER.getStandardFileManager(a.found, null, StandardCharsets.UTF_8);
    List<String> options = List.of(
        "-proc:none", "-implicit:none", "-Xlint:none", "-Xmaxerrs", "100000",
        "-sourcepath", root.toString(), "-classpath", root.toString());
    List<JavaFileObject> units = new ArrayList<>();
    units.add(new Source(uri, text));
    for (Map.Entry<String, String> other : texts.entrySet())
      if (!other.getKey().equals(uri)) units.add(new Source(other.getKey(), other.getValue()));
    a.task = (JavacTask) COMPILER.getTask(new StringWriter(), files, a.found, options, null, units);
    a.unit = a.task.parse().iterator().next();
    a.task.analyze();
    return a;
  }

  static List<Object> diagnostics(String uri) throws IOException {
    String text = texts.get(uri);
    List<Object> items = new ArrayList<>();
    for (Diagnostic<? extends JavaFileObject> d : analyse(uri, text).found.getDiagnostics()) {
      if (d.getSource() == null || !d.getSource().toUri().toString().equals(uri)) continue;
      int start = (int) Math.max(0, d.getPosition() < 0 ? d.getStartPosition() : d.getPosition());
      int end = (int) Math.max(start, d.getEndPosition());
      Map<String, Object> item = new LinkedHashMap<>();
      item.put("range", Map.of("start", place(text, start), "end", place(text, end)));
      item.put("severity", d.getKind() == Diagnostic.Kind.ERROR ? 1 : 2);
      item.put("code", d.getCode());
      item.put("message", d.getMessage(Locale.ENGLISH));
      item.put("source", "javac");
      items.add(item);
    }
    return items;
  }

  // Positions: a Java char is a UTF-16 unit, as in the protocol.

  static Map<String, Object> place(String text, int offset) {
    int line = 0, start = 0;
    offset = Math.min(offset, text.length());
    for (int i = 0; i < offset; i++) {
      char c = text.charAt(i);
      boolean pair = c == '\r' && i + 1 < text.length() && text.charAt(i + 1) == '\n';
      if (c == '\n' || c == '\r' && !pair) {
        line++;
        start = i + 1;
      }
    }
    return Map.of("line", line, "character", offset - start);
  }

  static int offset(String text, Object position) {
    int line = ((Number) at(position, "line")).intValue();
    int i = 0;
    while (line > 0 && i < text.length()) {
      char c = text.charAt(i++);
      if (c == '\r' && i < text.length() && text.charAt(i) == '\n') i++;
      if (c == '\n' || c == '\r') line--;
    }
    return Math.min(text.length(), i + ((Number) at(position, "character")).intValue());
  }

  // Completion: the identifier at the cursor becomes a hole, the tree around it
  // says what may stand there.

  static Object complete(String uri, Object position) throws IOException {
    String text = texts.get(uri);
    int cursor = offset(text, position), start = cursor, end = cursor;
    while (start > 0 && Character.isJavaIdentifierPart(text.charAt(start - 1))) start--;
    while (end < text.length() && Character.isJavaIdentifierPart(text.charAt(end))) end++;
    String typed = text.substring(start, cursor);
    Map<String, Object> items = new TreeMap<>();
    for (String closing : List.of("", ";", "();")) {
      String holed = text.substring(0, start) + HOLE + closing + text.substring(end);
      Analysis a = analyse(uri, holed);
      TreePath path = find(a, start);
      if (path == null) continue;
      if (path.getLeaf() instanceof MemberSelectTree)
        members(a, path, typed, items);
      else
        names(a, path, typed, items);
      if (!items.isEmpty()) break;
    }
    return Map.of("isIncomplete", false, "items", new ArrayList<>(items.values()));
  }

  /** The path to the hole: an identifier, or the member that is selected. */
  static TreePath find(Analysis a, int start) {
    TreePath[] found = new TreePath[1];
    new TreePathScanner<Void, Void>() {
      @Override
      public Void visitIdentifier(IdentifierTree tree, Void ignored) {
        if (tree.getName().contentEquals(HOLE)) found[0] = getCurrentPath();
        return super.visitIdentifier(tree, ignored);
      }

      @Override
      public Void visitMemberSelect(MemberSelectTree tree, Void ignored) {
        if (tree.getIdentifier().contentEquals(HOLE)) found[0] = getCurrentPath();
        return super.visitMemberSelect(tree, ignored);
      }
    }.scan(a.unit, null);
    return found[0];
  }

  static void members(Analysis a, TreePath path, String typed, Map<String, Object> items) {
    Trees trees = Trees.instance(a.task);
    Elements elements = a.task.getElements();
    TreePath owner = new TreePath(path, ((MemberSelectTree) path.getLeaf()).getExpression());
    Element element = trees.getElement(owner);
    Scope scope = trees.getScope(path);
    if (element instanceof PackageElement) {
      for (Element e : element.getEnclosedElements()) add(a, e, typed, items);
      return;
    }
    TypeMirror type = trees.getTypeMirror(owner);
    if (type instanceof ArrayType) add("length", "field", "int", typed, items);
    if (type instanceof TypeVariable) type = ((TypeVariable) type).getUpperBound();
    if (!(type instanceof DeclaredType)) return;
    DeclaredType declared = (DeclaredType) type;
    boolean onType = element instanceof TypeElement;
    for (Element e : elements.getAllMembers((TypeElement) declared.asElement())) {
      if (e.getKind() == ElementKind.CONSTRUCTOR) continue;
      if (onType && !e.getModifiers().contains(Modifier.STATIC) && !(e instanceof TypeElement)) continue;
      if (trees.isAccessible(scope, e, declared)) add(a, e, typed, items);
    }
    if (onType) add("class", "keyword", "", typed, items);
  }

  static void names(Analysis a, TreePath path, String typed, Map<String, Object> items) {
    Trees trees = Trees.instance(a.task);
    for (Scope scope = trees.getScope(path); scope != null; scope = scope.getEnclosingScope()) {
      for (Element e : scope.getLocalElements()) add(a, e, typed, items);
      TypeElement owner = scope.getEnclosingClass();
      if (owner == null) continue;
      for (Element e : a.task.getElements().getAllMembers(owner))
        if (e.getKind() != ElementKind.CONSTRUCTOR) add(a, e, typed, items);
    }
    PackageElement lang = a.task.getElements().getPackageElement("java.lang");
    for (Element e : lang.getEnclosedElements())
      if (e.getModifiers().contains(Modifier.PUBLIC)) add(a, e, typed, items);
    for (ImportTree i : a.unit.getImports()) {
      String whole = i.getQualifiedIdentifier().toString();
      String last = whole.substring(whole.lastIndexOf('.') + 1);
      if (!last.equals("*")) add(last, i.isStatic() ? "method" : "class", whole, typed, items);
    }
  }

  static void add(Analysis a, Element e, String typed, Map<String, Object> items) {
    String name = e.getSimpleName().toString();
    if (name.isEmpty() || name.equals("<init>") || name.startsWith(HOLE)) return;
    String kind = e instanceof ExecutableElement ? "method"
        : e instanceof TypeElement ? "class"
        : e instanceof PackageElement ? "module"
        : e.getKind() == ElementKind.FIELD ? "field" : "variable";
    add(name, kind, e instanceof TypeElement ? e.toString() : "" + e.asType(), typed, items);
  }

  static final Map<String, Integer> KINDS = Map.of(
      "method", 2, "field", 5, "variable", 6, "class", 7, "module", 9, "keyword", 14);

  static void add(String name, String kind, String detail, String typed, Map<String, Object> items) {
    if (!name.regionMatches(true, 0, typed, 0, typed.length())) return;
    items.putIfAbsent(name + " " + kind, Map.of("label", name, "kind", KINDS.get(kind), "detail", detail));
  }

  // Signatures of the call around the cursor.

  static Object signatures(String uri, Object position) throws IOException {
    String text = texts.get(uri);
    int cursor = offset(text, position), depth = 0, commas = 0, open = cursor - 1;
    for (; open >= 0; open--) {
      char c = text.charAt(open);
      if (c == ')' || c == ']' || c == '}') depth++;
      else if (c == '(' && depth == 0) break;
      else if (c == '(' || c == '[' || c == '{') depth--;
      else if (c == ',' && depth == 0) commas++;
      else if (c == ';') return null;
      if (depth < 0) return null;
    }
    int end = open;
    while (end > 0 && Character.isWhitespace(text.charAt(end - 1))) end--;
    int start = end;
    while (start > 0 && Character.isJavaIdentifierPart(text.charAt(start - 1))) start--;
    if (open < 0 || start == end) return null;
    String name = text.substring(start, end);
    Analysis a = analyse(uri, text.substring(0, start) + HOLE + ";" + text.substring(end));
    TreePath path = find(a, start);
    if (path == null) return null;
    Trees trees = Trees.instance(a.task);
    List<Object> found = new ArrayList<>();
    List<Element> elements = new ArrayList<>();
    if (path.getLeaf() instanceof MemberSelectTree) {
      TreePath owner = new TreePath(path, ((MemberSelectTree) path.getLeaf()).getExpression());
      TypeMirror type = trees.getTypeMirror(owner);
      if (type instanceof DeclaredType)
        elements.addAll(a.task.getElements().getAllMembers((TypeElement) ((DeclaredType) type).asElement()));
    } else {
      for (Scope s = trees.getScope(path); s != null; s = s.getEnclosingScope())
        if (s.getEnclosingClass() != null)
          elements.addAll(a.task.getElements().getAllMembers(s.getEnclosingClass()));
    }
    for (Element e : new LinkedHashSet<>(elements)) {
      if (!(e instanceof ExecutableElement) || !e.getSimpleName().contentEquals(name)) continue;
      List<Object> parameters = new ArrayList<>();
      List<String> labels = new ArrayList<>();
      for (VariableElement p : ((ExecutableElement) e).getParameters()) {
        labels.add(p.asType() + " " + p.getSimpleName());
        parameters.add(Map.of("label", p.asType() + " " + p.getSimpleName()));
      }
      found.add(Map.of("label", name + "(" + String.join(", ", labels) + ")", "parameters", parameters));
    }
    return found.isEmpty() ? null : Map.of("signatures", found, "activeParameter", commas);
  }

  // JSON-RPC.

  static Object read() throws IOException {
    int length = -1;
    while (true) {
      ByteArrayOutputStream line = new ByteArrayOutputStream();
      int c;
      while ((c = in.read()) >= 0 && c != '\n') line.write(c);
      if (c < 0) return null;
      String header = line.toString(StandardCharsets.US_ASCII).trim();
      if (header.isEmpty()) break;
      if (header.toLowerCase(Locale.ROOT).startsWith("content-length:"))
        length = Integer.parseInt(header.substring(15).trim());
    }
    byte[] body = in.readNBytes(length);
    return body.length < length ? null : new Json(new String(body, StandardCharsets.UTF_8)).value();
  }

  static void write(Object message) throws IOException {
    StringBuilder text = new StringBuilder();
    Json.write(message, text);
    byte[] body = text.toString().getBytes(StandardCharsets.UTF_8);
    out.write(("Content-Length: " + body.length + "\r\n\r\n").getBytes(StandardCharsets.US_ASCII));
    out.write(body);
    out.flush();
  }

  /** Reads and writes JSON; numbers are Long or Double. */
  static class Json {
    final String text;
    int i = 0;

    Json(String text) {
      this.text = text;
    }

    Object value() {
      blanks();
      char c = text.charAt(i);
      if (c == '{') return object();
      if (c == '[') return array();
      if (c == '"') return string();
      int start = i;
      while (i < text.length() && ",]} \t\r\n".indexOf(text.charAt(i)) < 0) i++;
      String word = text.substring(start, i);
      switch (word) {
        case "true": return true;
        case "false": return false;
        case "null": return null;
        default:
          if (word.matches("-?\\d+")) return Long.valueOf(word);
          return Double.valueOf(word);
      }
    }

    void blanks() {
      while (i < text.length() && Character.isWhitespace(text.charAt(i))) i++;
    }

    boolean more(char end) {
      blanks();
      char c = text.charAt(i);
      if (c == ',') {
        i++;
        blanks();
      } else if (c == end) {
        i++;
        return false;
      }
      return true;
    }

    Object object() {
      Map<String, Object> found = new LinkedHashMap<>();
      i++;
      while (more('}')) {
        String key = string();
        blanks();
        i++;
        found.put(key, value());
      }
      return found;
    }

    Object array() {
      List<Object> found = new ArrayList<>();
      i++;
      while (more(']')) found.add(value());
      return found;
    }

    String string() {
      StringBuilder found = new StringBuilder();
      i++;
      for (char c; (c = text.charAt(i++)) != '"'; ) {
        if (c != '\\') {
          found.append(c);
          continue;
        }
        c = text.charAt(i++);
        if (c == 'u') {
          found.append((char) Integer.parseInt(text.substring(i, i + 4), 16));
          i += 4;
        } else {
          int k = "bfnrt".indexOf(c);
          found.append(k < 0 ? c : "\b\f\n\r\t".charAt(k));
        }
      }
      return found.toString();
    }

    static void write(Object value, StringBuilder out) {
      if (value instanceof Map) {
        String separator = "{";
        if (((Map<?, ?>) value).isEmpty()) out.append('{');
        for (Map.Entry<?, ?> e : ((Map<?, ?>) value).entrySet()) {
          out.append(separator);
          write(e.getKey(), out);
          out.append(':');
          write(e.getValue(), out);
          separator = ",";
        }
        out.append('}');
      } else if (value instanceof List) {
        String separator = "[";
        if (((List<?>) value).isEmpty()) out.append('[');
        for (Object e : (List<?>) value) {
          out.append(separator);
          write(e, out);
          separator = ",";
        }
        out.append(']');
      } else if (value instanceof String) {
        out.append('"');
        for (char c : ((String) value).toCharArray()) {
          if (c == '"' || c == '\\') out.append('\\').append(c);
          else if (c < 0x20 || Character.isSurrogate(c)) out.append(String.format("\\u%04x", (int) c));
          else out.append(c);
        }
        out.append('"');
      } else {
        out.append(value);
      }
    }
  }
}
