import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.InputStream;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.KeyPairGenerator;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.SecureRandom;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.cert.X509Certificate;
import java.security.spec.ECGenParameterSpec;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collections;
import java.util.HexFormat;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.SplittableRandom;
import java.util.TreeMap;
import java.util.UUID;
import java.util.concurrent.Executors;
import java.util.concurrent.ThreadLocalRandom;
import java.util.function.BiConsumer;
import java.util.stream.IntStream;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLEngine;
import javax.net.ssl.SSLEngineResult.HandshakeStatus;
import javax.net.ssl.TrustManager;
import javax.net.ssl.X509TrustManager;

/** Answers with everything that it takes for random. It is what an ordinary program does, and knows nothing of snapshots. */
public final class Main {
    private static final SecureRandom SECURE = new SecureRandom();
    private static SSLContext tls;

    public static void main(String[] args) throws Exception {
        tls = context();
        HttpServer server = HttpServer.create(new InetSocketAddress("0.0.0.0", 8080), 16);
        server.setExecutor(Executors.newFixedThreadPool(1)); // it is there before the snapshot
        server.createContext("/", Main::handle);
        server.start();
    }

    private static void handle(HttpExchange x) {
        try (x) {
            int status = 200;
            byte[] body;
            try {
                Map<String, Set<String>> values = new TreeMap<>();
                for (int i = 0; i < 3; i++) {
                    collect((name, v) -> values.computeIfAbsent(name, n -> new LinkedHashSet<>()).add(v));
                }
                StringBuilder b = new StringBuilder();
                values.forEach((name, all) -> b.append(b.length() == 0 ? "{\"" : ",\"").append(name).append("\":[\"")
                        .append(String.join("\",\"", all)).append("\"]"));
                body = b.append('}').toString().getBytes(StandardCharsets.UTF_8);
            } catch (Exception e) {
                e.printStackTrace();
                status = 500;
                body = e.toString().getBytes(StandardCharsets.UTF_8);
            }
            x.sendResponseHeaders(status, body.length);
            x.getResponseBody().write(body);
        } catch (java.io.IOException e) {
            e.printStackTrace();
        }
    }

    private static void collect(BiConsumer<String, String> add) throws Exception {
        HexFormat hex = HexFormat.of();
        byte[] b = new byte[16];
        SECURE.nextBytes(b);
        add.accept("SecureRandom", hex.formatHex(b));
        new SecureRandom().nextBytes(b);
        add.accept("new SecureRandom", hex.formatHex(b));
        add.accept("UUID", UUID.randomUUID().toString());
        add.accept("Math.random", Double.toString(Math.random()));
        add.accept("ThreadLocalRandom", Long.toHexString(ThreadLocalRandom.current().nextLong()));
        add.accept("new Random", Long.toHexString(new Random().nextLong()));
        add.accept("new SplittableRandom", Long.toHexString(new SplittableRandom().nextLong()));
        List<Integer> list = new ArrayList<>(IntStream.range(0, 40).boxed().toList());
        Collections.shuffle(list);
        add.accept("Collections.shuffle", list.toString());
        KeyPairGenerator keys = KeyPairGenerator.getInstance("EC");
        keys.initialize(new ECGenParameterSpec("secp256r1"));
        add.accept("key pair", hex.formatHex(keys.generateKeyPair().getPrivate().getEncoded()));
        File f = File.createTempFile("clone", null);
        add.accept("File.createTempFile", f.getName());
        Files.delete(f.toPath());
        Path dir = Files.createTempDirectory("clone");
        add.accept("Files.createTempDirectory", dir.toString());
        Files.delete(dir);
        handshake(add);
    }

    /** Talks TLS with itself. What is shown of it is all that the keys are made of. */
    private static void handshake(BiConsumer<String, String> add) throws Exception {
        SSLEngine client = tls.createSSLEngine();
        client.setUseClientMode(true);
        SSLEngine server = tls.createSSLEngine();
        server.setUseClientMode(false);
        int size = client.getSession().getPacketBufferSize();
        ByteBuffer up = ByteBuffer.allocate(2 * size);
        ByteBuffer down = ByteBuffer.allocate(2 * size);
        step(client, up, down);
        hello("client", up, add);
        step(server, down, up);
        hello("server", down, add);
        while (step(client, up, down) | step(server, down, up)) {
            // until both are done
        }
        if (client.getHandshakeStatus() != HandshakeStatus.NOT_HANDSHAKING) {
            throw new IllegalStateException("TLS: " + client.getHandshakeStatus());
        }
    }

    private static boolean step(SSLEngine e, ByteBuffer out, ByteBuffer in) throws Exception {
        boolean moved = false;
        ByteBuffer nothing = ByteBuffer.allocate(0);
        ByteBuffer data = ByteBuffer.allocate(e.getSession().getApplicationBufferSize());
        if (e.getHandshakeStatus() == HandshakeStatus.NOT_HANDSHAKING) {
            e.beginHandshake();
        }
        while (true) {
            switch (e.getHandshakeStatus()) {
                case NEED_TASK -> {
                    for (Runnable r; (r = e.getDelegatedTask()) != null; ) {
                        r.run();
                    }
                }
                case NEED_WRAP -> e.wrap(nothing, out);
                case NEED_UNWRAP, NEED_UNWRAP_AGAIN -> {
                    in.flip();
                    int before = in.remaining();
                    e.unwrap(in, data);
                    boolean none = in.remaining() == before;
                    in.compact();
                    if (none) {
                        return moved;
                    }
                }
                default -> {
                    return false;
                }
            }
            moved = true;
        }
    }

    /** Random and key share of a hello message, RFC 8446, section 4.1. */
    private static void hello(String who, ByteBuffer record, BiConsumer<String, String> add) {
        ByteBuffer m = record.duplicate().flip();
        m.position(5 + 4 + 2); // headers of record and message, version
        byte[] random = new byte[32];
        m.get(random);
        add.accept("tls " + who + " random", HexFormat.of().formatHex(random));
        m.position(m.position() + 1 + m.get(m.position())); // session
        m.position(m.position() + (who.equals("client") ? 2 + m.getShort(m.position()) + 2 : 2 + 1)); // suites, compression
        m.limit(m.position() + 2 + m.getShort(m.position())).position(m.position() + 2);
        while (m.remaining() >= 4) {
            int type = m.getShort();
            byte[] value = new byte[m.getShort()];
            m.get(value);
            if (type == 51) {
                add.accept("tls " + who + " key share", HexFormat.of().formatHex(value));
            }
        }
    }

    private static byte[] resource(String name) throws java.io.IOException {
        try (InputStream in = Main.class.getResourceAsStream("/" + name)) {
            return in.readAllBytes();
        }
    }

    private static SSLContext context() throws Exception {
        Certificate cert = CertificateFactory.getInstance("X.509")
                .generateCertificate(new ByteArrayInputStream(resource("cert.pem")));
        String pem = new String(resource("key.pem"), StandardCharsets.US_ASCII).replaceAll("-----.*-----|\\s", "");
        PrivateKey key = KeyFactory.getInstance("EC").generatePrivate(new PKCS8EncodedKeySpec(Base64.getDecoder().decode(pem)));
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        store.setKeyEntry("me", key, new char[0], new Certificate[] {cert});
        KeyManagerFactory keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        keys.init(store, new char[0]);
        X509TrustManager any = new X509TrustManager() {
            @Override
            public void checkClientTrusted(X509Certificate[] chain, String type) {}

            @Override
            public void checkServerTrusted(X509Certificate[] chain, String type) {}

            @Override
            public X509Certificate[] getAcceptedIssuers() {
                return new X509Certificate[0];
            }
        };
        SSLContext c = SSLContext.getInstance("TLS");
        c.init(keys.getKeyManagers(), new TrustManager[] {any}, null);
        return c;
    }
}
