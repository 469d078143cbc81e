// What Ollama does with a conversation and a template, with its types' fields and the way in which they print.
// Standard input: JSON, a list of cases. Standard output: a list of texts or errors.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Arguments map[string]any

func (a Arguments) String() string { return marshal(a) }

type Function struct {
	Name      string    `json:"name"`
	Arguments Arguments `json:"arguments"`
}

type ToolCall struct {
	Function Function `json:"function"`
}

type Message struct {
	Role      string     `json:"role"`
	Content   string     `json:"content"`
	Thinking  string     `json:"reasoning_content"`
	ToolName  string     `json:"name"`
	ToolCalls []ToolCall `json:"tool_calls"`
}

type Property struct {
	Type        string `json:"type"`
	Description string `json:"description"`
}

type Parameters struct {
	Type       string              `json:"type"`
	Required   []string            `json:"required"`
	Properties map[string]Property `json:"properties"`
}

type Tool struct {
	Type     string `json:"type"`
	Function struct {
		Name        string     `json:"name"`
		Description string     `json:"description"`
		Parameters  Parameters `json:"parameters"`
	} `json:"function"`
}

func (t Tool) String() string { return marshal(t) }

type Tools []Tool

func (t Tools) String() string { return marshal(t) }

type Case struct {
	Template string         `json:"template"`
	Values   map[string]any `json:"values"`
	Messages []Message      `json:"messages"`
	Tools    Tools          `json:"tools"`
	System   string         `json:"system"`
	Thinking *bool          `json:"thinking"`
}

type Answer struct {
	Text  string `json:"text"`
	Error string `json:"error"`
}

func marshal(value any) string {
	data, _ := json.Marshal(value)
	return string(data)
}

func collate(given []Message) (string, []*Message) {
	var system []string
	var messages []*Message
	for i := range given {
		if given[i].Role == "system" {
			system = append(system, given[i].Content)
		}
		last := len(messages) - 1
		if last >= 0 && messages[last].Role == given[i].Role && given[i].Role != "tool" {
			messages[last].Content += "\n\n" + given[i].Content
		} else {
			messages = append(messages, &given[i])
		}
	}
	return strings.Join(system, "\n\n"), messages
}

func (c Case) values() map[string]any {
	if c.Messages == nil {
		return c.Values
	}
	if c.System != "" && c.Messages[0].Role != "system" {
		c.Messages = append([]Message{{Role: "system", Content: c.System}}, c.Messages...)
	}
	system, messages := collate(c.Messages)
	return map[string]any{
		"System": system, "Messages": messages, "Tools": c.Tools, "Response": "",
		"Think": c.Thinking != nil && *c.Thinking, "IsThinkSet": c.Thinking != nil,
	}
}

func answer(c Case) Answer {
	made := template.New("").Option("missingkey=zero").Funcs(template.FuncMap{"json": marshal})
	parsed, err := made.Parse(c.Template)
	if err != nil {
		return Answer{Error: err.Error()}
	}
	var text strings.Builder
	if err := parsed.Execute(&text, c.values()); err != nil {
		return Answer{Error: err.Error()}
	}
	return Answer{Text: text.String()}
}

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	answers := []Answer{}
	for _, each := range cases {
		answers = append(answers, answer(each))
	}
	json.NewEncoder(os.Stdout).Encode(answers)
}
