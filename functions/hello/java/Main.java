import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.OutputStream;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/** Greets over HTTP/1.1. The JDK's own server only. */
public final class Main {
    public static void main(String[] args) throws IOException {
        // Headers and body are two writes here; without this the second waits 40 ms for the first's acknowledgement.
        System.setProperty("sun.net.httpserver.nodelay", "true");
        int port = Integer.parseInt(getenv("PORT", "8080"));
        HttpServer server = HttpServer.create(new InetSocketAddress("0.0.0.0", port), 1024);
        ExecutorService threads = Executors.newCachedThreadPool();
        server.setExecutor(threads);
        server.createContext("/", Main::handle);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> server.stop(1)));
        server.start();
        System.out.println("listening on 0.0.0.0:" + port);
    }

    private static void handle(HttpExchange x) throws IOException {
        try (x) {
            switch (x.getRequestMethod() + " " + x.getRequestURI().getPath()) {
                case "GET /" -> text(x, 200, "Hello, " + getenv("TARGET", "World") + "!\n");
                case "GET /healthz" -> text(x, 200, "ok\n");
                case "GET /env" -> answer(x, 200, "application/json", json(System.getenv()).getBytes(StandardCharsets.UTF_8));
                case "POST /echo" -> echo(x);
                default -> text(x, 404, "not found\n");
            }
        }
    }

    private static void echo(HttpExchange x) throws IOException {
        String type = x.getRequestHeaders().getFirst("Content-Type");
        answer(x, 200, type == null ? "application/octet-stream" : type, x.getRequestBody().readAllBytes());
    }

    private static void text(HttpExchange x, int status, String body) throws IOException {
        answer(x, status, "text/plain; charset=utf-8", body.getBytes(StandardCharsets.UTF_8));
    }

    private static void answer(HttpExchange x, int status, String type, byte[] body) throws IOException {
        x.getResponseHeaders().set("Content-Type", type);
        // -1 means "no body", 0 would mean "length unknown".
        x.sendResponseHeaders(status, body.length == 0 ? -1 : body.length);
        if (body.length > 0) {
            try (OutputStream out = x.getResponseBody()) {
                out.write(body);
            }
        }
    }

    private static String getenv(String name, String otherwise) {
        String v = System.getenv(name);
        return v == null || v.isEmpty() ? otherwise : v;
    }

    private static String json(Map<String, String> map) {
        StringBuilder b = new StringBuilder("{");
        map.forEach((k, v) -> {
            b.append(b.length() == 1 ? "" : ",");
            quote(b, k);
            b.append(':');
            quote(b, v);
        });
        return b.append("}\n").toString();
    }

    private static void quote(StringBuilder b, String s) {
        b.append('"');
        for (char c : s.toCharArray()) {
            if (c < ' ' || c == '"' || c == '\\') {
                b.append(String.format("\\u%04x", (int) c));
            } else {
                b.append(c);
            }
        }
        b.append('"');
    }
}
