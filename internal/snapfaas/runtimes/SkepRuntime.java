import java.io.*;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.net.*;
import java.nio.charset.StandardCharsets;
import java.util.*;

/**
 * Skep's Java runtime for SnapFaaS's tools: it runs in the guest. See main.py
 * for the protocol. The app is a class Workload, in .class files or jars, with
 * a method handle: it takes and returns what JSON can say (Map, List, String,
 * Double, Boolean, null).
 */
public final class SkepRuntime {
    static final int PORT = Integer.parseInt(System.getenv().getOrDefault("SKEP_RUNTIME_PORT", "1234"));
    static final File APP = new File(System.getenv().getOrDefault("SKEP_RUNTIME_APP", "/srv"));
    static final int LIMIT = 16 << 20; // bytes of a message

    static Method handle;
    static Object target; // null if handle is static

    public static void main(String[] args) throws Exception {
        String[] names = APP.list();
        if (names != null && Arrays.stream(names).anyMatch(n -> n.startsWith("Workload.") || n.endsWith(".jar"))) {
            load(); // the app is part of the root file system
        }
        try (ServerSocket listener = new ServerSocket(PORT, 8, InetAddress.getByName("0.0.0.0"))) {
            while (true) {
                try (Socket conn = listener.accept()) {
                    conn.setTcpNoDelay(true);
                    serve(conn);
                } catch (IOException | SkepJson.Bad e) {
                    System.err.println("connection: " + e.getMessage());
                }
            }
        }
    }

    /** Loads the app: all jars, and the folder itself. */
    static void load() throws Exception {
        List<URL> urls = new ArrayList<>();
        urls.add(APP.toURI().toURL());
        for (File dir : new File[] {APP, new File(APP, "lib"), new File(APP, "package")}) {
            File[] jars = dir.listFiles((d, n) -> n.endsWith(".jar"));
            if (jars == null) continue;
            Arrays.sort(jars);
            for (File j : jars) urls.add(j.toURI().toURL());
        }
        ClassLoader loader = new URLClassLoader(urls.toArray(new URL[0]), SkepRuntime.class.getClassLoader());
        Class<?> app = Class.forName("Workload", true, loader);
        for (Method m : app.getMethods()) {
            if (!m.getName().equals("handle") || m.getParameterCount() != 1) continue;
            target = java.lang.reflect.Modifier.isStatic(m.getModifiers()) ? null : app.getConstructor().newInstance();
            handle = m;
            return;
        }
        throw new NoSuchMethodException("Workload has no public method handle with one parameter");
    }

    static void serve(Socket conn) throws IOException {
        DataInputStream in = new DataInputStream(new BufferedInputStream(conn.getInputStream()));
        DataOutputStream out = new DataOutputStream(new BufferedOutputStream(conn.getOutputStream()));
        send(out, Map.of("type", handle == null ? "runtime-ready" : "app-ready", "runtime", "java"));
        while (true) {
            int size;
            try {
                size = in.readInt();
            } catch (EOFException e) {
                return;
            }
            if (size < 0 || size > LIMIT) throw new IOException("a message of " + Integer.toUnsignedString(size) + " bytes");
            byte[] data = new byte[size];
            in.readFully(data);
            send(out, answer(SkepJson.parse(new String(data, StandardCharsets.UTF_8))));
        }
    }

    static Map<String, Object> answer(Object message) {
        try {
            Map<?, ?> m = (Map<?, ?>) message;
            String type = String.valueOf(m.get("type"));
            if (type.equals("load-app")) {
                if (handle == null) load();
                return Map.of("type", "app-ready");
            }
            if (!type.equals("request")) throw new IllegalArgumentException("unknown message " + type);
            if (handle == null) throw new IllegalStateException("no app is loaded");
            Map<String, Object> reply = new HashMap<>();
            reply.put("type", "response");
            reply.put("payload", handle.invoke(target, m.get("payload")));
            return reply;
        } catch (Throwable t) {
            if (t instanceof InvocationTargetException && t.getCause() != null) t = t.getCause();
            StringWriter w = new StringWriter();
            t.printStackTrace(new PrintWriter(w));
            String s = w.toString();
            return Map.of("type", "error", "error", s.substring(0, Math.min(s.length(), 8192)));
        }
    }

    static void send(DataOutputStream out, Map<String, Object> message) throws IOException {
        byte[] data;
        try {
            data = SkepJson.print(message).getBytes(StandardCharsets.UTF_8);
        } catch (SkepJson.Bad e) {
            data = SkepJson.print(Map.of("type", "error", "error", e.getMessage())).getBytes(StandardCharsets.UTF_8);
        }
        if (data.length > LIMIT) {
            data = SkepJson.print(Map.of("type", "error", "error", "the response is larger than " + LIMIT + " bytes"))
                    .getBytes(StandardCharsets.UTF_8);
        }
        out.writeInt(data.length);
        out.write(data);
        out.flush();
    }
}

/** JSON in and out. Objects keep their order; whole numbers are Long. */
final class SkepJson {
    static final class Bad extends RuntimeException {
        Bad(String s) {
            super(s);
        }
    }

    private static final int DEPTH = 512;
    private final String s;
    private int i;

    private SkepJson(String s) {
        this.s = s;
    }

    static Object parse(String s) {
        SkepJson j = new SkepJson(s);
        Object v = j.value(0);
        if (j.peek() != 0) throw j.bad("end");
        return v;
    }

    private Bad bad(String want) {
        return new Bad("JSON at " + i + ": want " + want);
    }

    private char peek() {
        while (i < s.length() && " \t\r\n".indexOf(s.charAt(i)) >= 0) i++;
        return i < s.length() ? s.charAt(i) : 0;
    }

    private void expect(char c) {
        if (peek() != c) throw bad("'" + c + "'");
        i++;
    }

    private Object word(String w, Object v) {
        if (!s.startsWith(w, i)) throw bad(w);
        i += w.length();
        return v;
    }

    private Object value(int depth) {
        if (depth > DEPTH) throw bad("less depth");
        switch (peek()) {
            case '{': {
                Map<String, Object> m = new LinkedHashMap<>();
                i++;
                for (boolean first = true; peek() != '}'; first = false) {
                    if (!first) expect(',');
                    if (peek() != '"') throw bad("a key");
                    String k = string();
                    expect(':');
                    m.put(k, value(depth + 1));
                }
                i++;
                return m;
            }
            case '[': {
                List<Object> l = new ArrayList<>();
                i++;
                for (boolean first = true; peek() != ']'; first = false) {
                    if (!first) expect(',');
                    l.add(value(depth + 1));
                }
                i++;
                return l;
            }
            case '"':
                return string();
            case 't':
                return word("true", true);
            case 'f':
                return word("false", false);
            case 'n':
                return word("null", null);
            default:
                return number();
        }
    }

    private Object number() {
        int from = i;
        while (i < s.length() && "+-.eE0123456789".indexOf(s.charAt(i)) >= 0) i++;
        String n = s.substring(from, i);
        try {
            if (n.matches("-?\\d{1,18}")) return Long.valueOf(n);
            return Double.valueOf(n);
        } catch (NumberFormatException e) {
            throw bad("a value");
        }
    }

    private String string() {
        StringBuilder b = new StringBuilder();
        i++;
        while (true) {
            if (i >= s.length()) throw bad("'\"'");
            char c = s.charAt(i++);
            if (c == '"') return b.toString();
            if (c != '\\') {
                b.append(c);
                continue;
            }
            if (i >= s.length()) throw bad("an escape");
            c = s.charAt(i++);
            int at = "\"\\/bfnrt".indexOf(c);
            if (at >= 0) {
                b.append("\"\\/\b\f\n\r\t".charAt(at));
            } else if (c == 'u' && i + 4 <= s.length()) {
                try {
                    b.append((char) Integer.parseInt(s.substring(i, i + 4), 16));
                } catch (NumberFormatException e) {
                    throw bad("four hexadecimal digits");
                }
                i += 4;
            } else {
                throw bad("an escape");
            }
        }
    }

    static String print(Object v) {
        StringBuilder b = new StringBuilder();
        print(b, v, 0);
        return b.toString();
    }

    private static void print(StringBuilder b, Object v, int depth) {
        if (depth > DEPTH) throw new Bad("the response is nested too deep");
        if (v == null || v instanceof Boolean || v instanceof Number) {
            if (v instanceof Double && (((Double) v).isNaN() || ((Double) v).isInfinite())) {
                throw new Bad("JSON has no " + v);
            }
            b.append(v);
        } else if (v instanceof Map) {
            String sep = "{";
            for (Map.Entry<?, ?> e : ((Map<?, ?>) v).entrySet()) {
                b.append(sep);
                quote(b, String.valueOf(e.getKey()));
                b.append(':');
                print(b, e.getValue(), depth + 1);
                sep = ",";
            }
            b.append(sep.equals("{") ? "{}" : "}");
        } else if (v instanceof Iterable) {
            String sep = "[";
            for (Object o : (Iterable<?>) v) {
                b.append(sep);
                print(b, o, depth + 1);
                sep = ",";
            }
            b.append(sep.equals("[") ? "[]" : "]");
        } else if (v instanceof CharSequence) {
            quote(b, v.toString());
        } else {
            throw new Bad("JSON has no " + v.getClass().getName());
        }
    }

    private static void quote(StringBuilder b, String s) {
        b.append('"');
        for (int k = 0; k < s.length(); k++) {
            char c = s.charAt(k);
            if (c == '"' || c == '\\') b.append('\\').append(c);
            else if (c < ' ' || Character.isSurrogate(c)) b.append(String.format("\\u%04x", (int) c));
            else b.append(c);
        }
        b.append('"');
    }
}
