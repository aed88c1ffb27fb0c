import java.util.Map;

public final class Workload {
    /** Says hello; obj is what the request's JSON line held. */
    public static Object handle(Object obj) {
        Object name = obj instanceof Map ? ((Map<?, ?>) obj).get("name") : null;
        return Map.of("message", "hello, " + (name == null ? "world" : name));
    }
}
