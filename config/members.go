package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// member is one member of a JSON object, with the value's bytes as in the file.
type member struct {
	key string
	raw json.RawMessage
	at  int // offset of the value
}

// members returns the members of the object that data holds, in order. If a key
// is there twice its last value counts, as in encoding/json. at is the offset of
// the error.
func members(data []byte) (ms []member, at int, err error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(data, &object); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, max(int(syntax.Offset)-1, 0), err
		}
		return nil, 0, errors.New("it holds no JSON object")
	}
	if object == nil {
		return nil, 0, errors.New("it holds no JSON object")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if _, err := dec.Token(); err != nil { // the opening brace
		return nil, 0, err
	}
	index := map[string]int{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return nil, int(dec.InputOffset()), err
		}
		key, _ := token.(string)
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, int(dec.InputOffset()), err
		}
		m := member{key: key, raw: raw, at: int(dec.InputOffset()) - len(raw)}
		if i, twice := index[key]; twice {
			ms[i] = m
			continue
		}
		index[key] = len(ms)
		ms = append(ms, m)
	}
	return ms, 0, nil
}

func find(ms []member, key string) (member, bool) {
	for _, m := range ms {
		if m.key == key {
			return m, true
		}
	}
	return member{}, false
}

// asBool reads a boolean as libcni does: a string "true" or "false" is one too.
func asBool(raw json.RawMessage) (value, ok bool) {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return false, false
	}
	switch v := v.(type) {
	case bool:
		return v, true
	case string:
		return strings.EqualFold(v, "true"), strings.EqualFold(v, "true") || strings.EqualFold(v, "false")
	}
	return false, false
}

// wrongType words an error of json.Unmarshal without Go's names of types.
func wrongType(err error) string {
	var e *json.UnmarshalTypeError
	if !errors.As(err, &e) {
		return err.Error()
	}
	where := ""
	if e.Field != "" {
		where = e.Field + " "
	}
	want := map[string]string{"string": "a string", "bool": "true or false", "slice": "a list", "map": "an object", "struct": "an object", "float64": "a smaller number"}[e.Type.Kind().String()]
	if want == "" {
		want = "a " + e.Type.String()
	}
	article := "a"
	if strings.HasPrefix(e.Value, "a") || strings.HasPrefix(e.Value, "o") {
		article = "an"
	}
	return fmt.Sprintf("%sis %s %s; want %s", where, article, e.Value, want)
}
