package recorder

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// Redacted stands where a secret was.
const Redacted = "[redacted]"

// hints are in every text that has something to redact, in lower case.
var hints = []string{
	"pass", "pwd", "token", "secret", "key", "kubeconfig", "auth", "credential", "bearer", "basic", "://", "-----begin", `\u`,
}

// secretWords make a key one of a secret, wherever they are in it.
var secretWords = []string{"password", "passwd", "passphrase", "token", "secret", "authorization", "credential", "kubeconfig"}

const secretKey = `[a-z0-9_.-]*(?:passw(?:or)?d|passphrase|token|secret|authorization|credential|api[_-]?key|private[_-]?key|client[_-]?key)[a-z0-9_.-]*`

// Secrets in text: KEY=VALUE and "KEY": "VALUE" also with escaped quotes, the
// credentials of HTTP, those in URLs, private keys.
var (
	pairs   = regexp.MustCompile(`(?i)(` + secretKey + `\\*["']?\s*[:=]\s*)(\\+"[^"\\]*\\+"|"[^"]*"|'[^']*'|(?:bearer|basic)\s+[^\s"']+|[^\s;,"'}\\]+)`)
	bearers = regexp.MustCompile(`(?i)\b(bearer|basic)(\s+)[a-z0-9._~+/=-]{6,}`)
	users   = regexp.MustCompile(`(://[^/\s:@"]*:)[^/\s@"]+@`)
	pems    = regexp.MustCompile(`-----BEGIN [^-]*PRIVATE KEY-----(?s:.*?)(?:-----END [^-]*-----|$)`)
)

// suspicious says whether there may be a secret in a text. It costs little, and for
// nearly all texts that is all.
func suspicious(text []byte) bool {
	lower := bytes.ToLower(text)
	return slices.ContainsFunc(hints, func(hint string) bool { return bytes.Contains(lower, []byte(hint)) })
}

// Redact returns JSON in which the values of keys such as password, token, secret or
// key are replaced, at any depth, and secrets in strings as in [RedactText]. What is
// no JSON is redacted as text and returned as a JSON string. Names of files are kept.
func Redact(data []byte) json.RawMessage {
	data = bytes.TrimSpace(data)
	if len(data) == 0 {
		return nil
	}
	if !suspicious(data) && json.Valid(data) {
		return bytes.Clone(data)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil || d.More() {
		return quote(RedactText(string(data)))
	}
	return marshal(redactValue(value))
}

// RedactText returns a text without the secrets in it: values of keys as in
// password=x, credentials of HTTP and in URLs, private keys.
func RedactText(text string) string {
	if !suspicious([]byte(text)) {
		return text
	}
	text = pems.ReplaceAllString(text, Redacted)
	text = pairs.ReplaceAllString(text, "${1}"+Redacted)
	text = bearers.ReplaceAllString(text, "${1}${2}"+Redacted)
	return users.ReplaceAllString(text, "${1}"+Redacted+"@")
}

// RedactEnv returns CNI variables without the secrets in CNI_ARGS. Its K8S_
// arguments are kept.
func RedactEnv(env []string) []string {
	kept := make([]string, 0, len(env))
	for _, kv := range env {
		if args, found := strings.CutPrefix(kv, "CNI_ARGS="); found {
			kv = "CNI_ARGS=" + redactArgs(args)
		}
		kept = append(kept, kv)
	}
	return kept
}

func redactArgs(args string) string {
	if !suspicious([]byte(args)) {
		return args
	}
	all := strings.Split(args, ";")
	for i, arg := range all {
		key, value, _ := strings.Cut(arg, "=")
		switch {
		case strings.HasPrefix(key, "K8S_"):
		case isSecret(key):
			all[i] = key + "=" + Redacted
		default:
			all[i] = key + "=" + RedactText(value)
		}
	}
	return strings.Join(all, ";")
}

// isSecret says whether the value of a key is a secret.
func isSecret(key string) bool {
	key = strings.Map(func(r rune) rune {
		if r == '_' || r == '-' || r == '.' {
			return -1
		}
		return r
	}, strings.ToLower(key))
	switch key {
	case "key", "keys", "auth", "pass", "pwd":
		return true
	}
	return strings.HasSuffix(key, "key") && key != "publickey" ||
		slices.ContainsFunc(secretWords, func(word string) bool { return strings.Contains(key, word) })
}

func redactValue(value any) any {
	switch v := value.(type) {
	case string:
		if inner := strings.TrimSpace(v); strings.HasPrefix(inner, "{") && suspicious([]byte(inner)) && json.Valid([]byte(inner)) {
			return string(Redact([]byte(inner))) // such as an annotation of kubectl's
		}
		return RedactText(v)
	case []any:
		for i := range v {
			v[i] = redactValue(v[i])
		}
	case map[string]any:
		name, _ := v["name"].(string) // {"name": "TOKEN", "value": "x"}
		for key, inner := range v {
			if isSecret(key) || key == "value" && isSecret(name) {
				v[key] = redactSecret(key, inner)
			} else {
				v[key] = redactValue(inner)
			}
		}
	}
	return value
}

// fileKeys end the keys of secrets that are in files: a value of theirs is mostly the
// file's name.
var fileKeys = []string{"kubeconfig", "file", "path"}

// redactSecret replaces the value of a secret's key. The name of a file that holds
// the secret is none, nor is whether there is one.
func redactSecret(key string, value any) any {
	switch v := value.(type) {
	case nil, bool:
		return v
	case string:
		isFile := slices.ContainsFunc(fileKeys, func(end string) bool { return strings.HasSuffix(strings.ToLower(key), end) })
		if v == "" || isFile && strings.HasPrefix(v, "/") && len(v) <= 4096 && !strings.ContainsAny(v, " \n\t=:") {
			return v
		}
	}
	return Redacted
}

func quote(text string) json.RawMessage { return marshal(text) }

// marshal is json.Marshal without escapes for HTML, for values that always have an
// encoding.
func marshal(value any) json.RawMessage {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(value) != nil {
		return json.RawMessage(`"` + Redacted + `"`)
	}
	return bytes.TrimSpace(b.Bytes())
}

// RedactLines is RedactText for the text of a file or a program, line by line, but for
// private keys, which have many lines.
func RedactLines(text []byte) []byte {
	if !suspicious(text) {
		return text
	}
	text = pems.ReplaceAll(text, []byte(Redacted))
	var b bytes.Buffer
	b.Grow(len(text))
	for line := range bytes.Lines(text) {
		if suspicious(line) {
			line = []byte(RedactText(string(line)))
		}
		b.Write(line)
	}
	return b.Bytes()
}
