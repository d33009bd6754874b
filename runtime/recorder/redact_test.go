package recorder

import (
	"strings"
	"testing"
)

// No secret passes, and what an operator needs does.
func TestRedact(t *testing.T) {
	const secret = "hunter2hunter2"
	for _, c := range []struct{ name, text, kept string }{
		{"top", `{"type":"bridge","password":"hunter2hunter2"}`, `"type":"bridge"`},
		{"deep", `{"plugins":[{"auth":{"user":"me","Token":"hunter2hunter2"}}],"name":"net"}`, `"name":"net"`},
		{"escaped key", `{"p\u0061ssword":"hunter2hunter2","name":"net"}`, `"name":"net"`},
		{"parts of keys", `{"etcd_client_key":"hunter2hunter2","API-KEY":"hunter2hunter2","mtu":1450}`, `"mtu":1450`},
		{"whole object", `{"credentials":{"a":["hunter2hunter2"]},"mtu":1450}`, `"mtu":1450`},
		{"number", `{"secret":42424242,"mtu":1450}`, `"mtu":1450`},
		{"name and value", `{"env":[{"name":"DB_PASSWORD","value":"hunter2hunter2"}],"mtu":1}`, `"mtu":1`},
		{"kubeconfig's contents", `{"kubeconfig":"apiVersion: v1\nusers: hunter2hunter2"}`, `kubeconfig`},
		{"kubeconfig's file", `{"kubernetes":{"kubeconfig":"/etc/cni/net.d/calico-kubeconfig"}}`, `/etc/cni/net.d/calico-kubeconfig`},
		{"in a message", `{"code":100,"msg":"login with password=hunter2hunter2 failed"}`, `"msg":"login with password=`},
		{"JSON in a string", `{"code":100,"msg":"sent {\"token\":\"hunter2hunter2\"}"}`, `"code":100`},
		{"name and value in a string", `{"annotations":{"last-applied":"{\"env\":[{\"name\":\"MY_TOKEN\",\"value\":\"hunter2hunter2\"}],\"image\":\"web\"}"}}`, `image`},
		{"YAML", "users:\n- user:\n    client-key-data: hunter2hunter2\n", `users`},
		{"url", `{"code":100,"details":"dial https://me:hunter2hunter2@db/x"}`, `https://me:`},
		{"bearer", `{"msg":"header Authorization: Bearer hunter2hunter2"}`, `header`},
		{"no JSON", `panic: token="hunter2hunter2" was refused`, `was refused`},
		{"cut JSON", `{"password":"hunter2hunter2", "x": [`, `password`},
		{"private key", "x -----BEGIN RSA PRIVATE KEY-----\nhunter2hunter2\n-----END RSA PRIVATE KEY----- y", ` y`},
	} {
		got := string(Redact([]byte(c.text)))
		if strings.Contains(got, secret) || strings.Contains(got, "42424242") || !strings.Contains(got, c.kept) {
			t.Errorf("%s: %s, want it without the secret and with %q", c.name, got, c.kept)
		}
	}
	for _, text := range []string{
		`stderr: "{\"password\":\"hunter2hunter2\"}"`, `Authorization: Basic aHVudGVyMmh1bnRlcjI=hunter2hunter2`, `db_password='hunter2hunter2'`,
	} {
		if got := RedactText(text); strings.Contains(got, secret) {
			t.Errorf("%s became %s", text, got)
		}
	}
	env := RedactEnv([]string{"CNI_COMMAND=ADD", "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=token-server;MY_TOKEN=hunter2hunter2;URL=http://a:hunter2hunter2@b"})
	got := strings.Join(env, " ")
	if strings.Contains(got, secret) || !strings.Contains(got, "K8S_POD_NAME=token-server") || !strings.Contains(got, "CNI_COMMAND=ADD") {
		t.Errorf("the environment became %s", got)
	}
}

// What has no secret stays as it is, byte for byte.
func TestRedactKeepsTheRest(t *testing.T) {
	for _, text := range []string{
		`{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/16"}],"dns":{}}`, `[]`, `"text"`, `{"b":1,"a":12345678901234567890}`,
	} {
		if got := string(Redact([]byte(" " + text + "\n"))); got != text {
			t.Errorf("%s became %s", text, got)
		}
	}
	if Redact([]byte(" \n")) != nil {
		t.Error("nothing became something")
	}
}
